package spsp

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// into sends every request to one handler, whatever the host.
type into struct{ h http.Handler }

func (t into) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	t.h.ServeHTTP(w, r)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

func TestResolve(t *testing.T) {
	doc := `{"destination":"test.a.b","shared_secret":"` + strings.Repeat("A", 43) + `="}`
	mux := http.NewServeMux()
	answer := func(kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept") != ContentType {
				t.Error(r.Header)
			}
			w.Header().Set("Content-Type", kind)
			_, _ = w.Write([]byte(body))
		}
	}
	mux.HandleFunc("/.well-known/pay", answer(ContentType+"; charset=utf-8", doc))
	mux.HandleFunc("/alice", answer(ContentType, doc))
	mux.HandleFunc("/html", answer("text/html", doc))
	mux.HandleFunc("/long", answer(ContentType, doc+strings.Repeat(" ", MaxDocument)))
	mux.HandleFunc("/bad", answer(ContentType, "{}"))
	mux.HandleFunc("/gone", http.NotFound)
	mux.Handle("/moved", http.RedirectHandler("https://other/alice", http.StatusFound))
	mux.Handle("/plain", http.RedirectHandler("http://other/alice", http.StatusFound))
	mux.Handle("/loop", http.RedirectHandler("https://other/loop", http.StatusFound))
	r := Resolver{Transport: into{mux}}
	for text, want := range map[string]error{
		"$shop": nil, "$shop/alice": nil, "$shop/moved": nil,
		"$shop/html": ErrResolve, "$shop/long": ErrDocument, "$shop/bad": ErrDocument, "$shop/gone": ErrResolve,
		"$shop/plain": ErrResolve, "$shop/loop": ErrResolve,
	} {
		p, err := ParsePointer(text)
		if err != nil {
			t.Fatal(err)
		}
		d, err := r.Resolve(t.Context(), p)
		if !errors.Is(err, want) || want == nil && d.Destination != "test.a.b" {
			t.Errorf("%s: %+v %v", text, d, err)
		}
	}

	server := httptest.NewServer(mux)
	defer server.Close()
	p, err := ParsePointer("$shop/alice")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Resolver{Loopback: strings.TrimPrefix(server.URL, "http://")}).Resolve(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"192.0.2.1:80", "localhost:80", "127.0.0.1", "shop:80"} {
		if _, err := (Resolver{Loopback: bad}).Resolve(t.Context(), p); !errors.Is(err, ErrLoopback) {
			t.Error(bad, err)
		}
	}
	p.Path = "/moved"
	if _, err := (Resolver{Loopback: strings.TrimPrefix(server.URL, "http://")}).Resolve(t.Context(), p); !errors.Is(err, ErrResolve) {
		t.Error("a loopback redirects: ", err)
	}
}
