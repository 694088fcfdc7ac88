# `make test` and `make build` need Go and nothing else. The linters come from
# modfiles of their own under .tools/ and are built on first use (a few minutes,
# then cached); LINT=… and BUF=… take binaries you already have.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO    ?= go
LINT  ?= $(GO) tool -modfile=.tools/lint.mod golangci-lint
BUF   ?= $(GO) tool -modfile=.tools/buf.mod buf

# What `make buf-breaking` compares with.
BASE ?= main
# Time per fuzz target, and which targets (a pattern of their names).
FUZZTIME ?= 10s
FUZZ     ?= .
# Which benchmarks, and in which packages.
BENCH    ?= .
PKG      ?= ./...

# The module that holds paych/actor against Filecoin's own actor; ./... does not
# reach it.
CONFORMANCE := paych/actor/conformance

PROTOS := $(shell find pb -name '*.proto' 2>/dev/null)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: test
test: ## go test ./...
	$(GO) test ./...

.PHONY: build
build: ## bin/tally
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/tally ./cmd/tally

.PHONY: check
check: fmt-check lint buf gen-check tidy-check race conformance ## everything below that can fail: run it before you push

.PHONY: race
race: ## tests with the race detector and the invariants (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -tags invariants -short $(PKG)

.PHONY: conformance
conformance: ## paych/actor and Filecoin's own actor, 100,000 random sequences
	cd $(CONFORMANCE) && $(GO) vet . && $(GO) test .

.PHONY: lint
lint: ## golangci-lint
	$(LINT) run ./...

.PHONY: fmt
fmt: ## gofumpt, in place
	$(LINT) fmt ./...

.PHONY: fmt-check
fmt-check:
	@$(LINT) fmt --diff ./...

.PHONY: buf
buf: buf-lint buf-breaking ## lint the .proto files and compare them with BASE

.PHONY: buf-lint
buf-lint:
	$(if $(PROTOS),$(BUF) lint,@echo 'no .proto files')

.PHONY: buf-breaking
buf-breaking:
	@if [ -n "$$(git ls-tree -r --name-only $(BASE) -- pb 2>/dev/null | grep '\.proto$$')" ]; then \
		set -x; $(BUF) breaking --against "$$(git rev-parse --path-format=absolute --git-common-dir)#branch=$(BASE)"; \
	else echo 'no .proto files in $(BASE) to compare with'; fi

.PHONY: gen
gen: ## write the .pb.go files
	$(if $(PROTOS),$(BUF) generate,@echo 'no .proto files')

# A .pb.go that differs from what its .proto gives, or that has no .proto.
.PHONY: gen-check
gen-check:
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; mkdir -p "$$tmp/pb"; \
	if [ -n '$(PROTOS)' ]; then $(BUF) generate -o "$$tmp"; fi; \
	list() { (cd "$$1" && find pb -name '*.pb.go' 2>/dev/null | sort) || true; }; \
	{ list .; list "$$tmp"; } | sort -u | { bad=0; while read -r f; do \
		cmp -s "$$f" "$$tmp/$$f" || { echo "not current: $$f (make gen)"; bad=1; }; \
	done; exit $$bad; }

.PHONY: tidy-check
tidy-check:
	$(GO) mod tidy -diff
	cd $(CONFORMANCE) && $(GO) mod tidy -diff

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (FUZZ=pattern picks some)
	@{ $(GO) list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' $(PKG); \
		$(if $(filter ./...,$(PKG)),echo '$(CURDIR)/$(CONFORMANCE)';) } | while read -r dir; do \
		{ grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$dir"/*_test.go || true; } | sed 's/^func //' | \
		{ grep -E '$(FUZZ)' || true; } | while read -r target; do \
			echo "== $${dir#$(CURDIR)/} $$target"; \
			$(GO) test -C "$$dir" -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s . </dev/null; \
		done; \
	done

.PHONY: bench
bench: ## Go benchmarks (BENCH=pattern, PKG=./swap)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem $(PKG)

# Tests behind the build tag interop talk to other implementations, for example
# JavaScript peers; each says in its skip message what to install.
.PHONY: interop
interop: ## tests against other implementations (needs node)
	@command -v node >/dev/null || { echo 'interop: node is not installed' >&2; exit 1; }
	$(GO) test -tags interop -run Interop -count=1 -v $(PKG)

.PHONY: clean
clean: ## remove what make wrote
	rm -rf bin dist
