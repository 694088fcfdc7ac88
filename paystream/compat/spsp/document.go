package spsp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/tallystick/tally/paystream/compat/envelope"
	"github.com/tallystick/tally/paystream/compat/ilp"
)

const (
	// ContentType is what a resolver asks for and a server answers with.
	ContentType = "application/spsp4+json"

	// MaxDocument bounds a document, in bytes: an address twice, a secret and room
	// for fields that are ignored.
	MaxDocument = 8192

	maxDepth = 8 // of a field that is ignored
)

// ErrDocument: not a document of a payment pointer.
var ErrDocument = errors.New("spsp: malformed document")

// Document is what a payment pointer resolves to.
type Document struct {
	Destination  ilp.Address
	SharedSecret envelope.Secret
	Balance      *Balance // nil: the client decides what to send
}

// Balance tells where the server's balance of the socket is and may go.
type Balance struct {
	Current int64
	Minimum *int64 // nil: none stated
	Maximum *int64
}

// Kind says what a document is for.
type Kind uint8

// The kinds of documents.
const (
	Push    Kind = iota // the client decides what to send
	Invoice             // the server asks up to its maximum
	Voucher             // the server pays out down to its minimum
	Account             // both ways
)

// String is the kind's name.
func (k Kind) String() string { return [...]string{"push", "invoice", "voucher", "account"}[k&3] }

// Kind returns what the document is for.
func (d *Document) Kind() Kind {
	b := d.Balance
	asks := b != nil && b.Maximum != nil && *b.Maximum > b.Current
	pays := b != nil && b.Minimum != nil && *b.Minimum < b.Current
	switch {
	case asks && pays:
		return Account
	case asks:
		return Invoice
	case pays:
		return Voucher
	}
	return Push
}

// Validate returns what is wrong with d.
func (d *Document) Validate() error {
	if err := d.Destination.Validate(); err != nil {
		return fmt.Errorf("%w: destination: %w", ErrDocument, err)
	}
	if b := d.Balance; b != nil && b.Minimum != nil && b.Maximum != nil && *b.Minimum > *b.Maximum {
		return fmt.Errorf("%w: minimum above maximum", ErrDocument)
	}
	return nil
}

// Encode returns the document as JSON. Figures are strings, because a JavaScript
// reader rounds numbers past 2^53; the address is written under the name of RFC
// 0009, too, which stock clients read.
func (d *Document) Encode() ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	type balance struct {
		Current int64  `json:"current,string"`
		Minimum *int64 `json:"minimum,omitempty,string"`
		Maximum *int64 `json:"maximum,omitempty,string"`
	}
	return json.Marshal(struct {
		Destination        ilp.Address `json:"destination"`
		DestinationAccount ilp.Address `json:"destination_account"`
		SharedSecret       string      `json:"shared_secret"`
		Balance            *balance    `json:"balance,omitempty"`
	}{
		d.Destination, d.Destination,
		base64.StdEncoding.EncodeToString(d.SharedSecret[:]), (*balance)(d.Balance),
	})
}

// Decode reads a document. Fields of other names are ignored; one that comes
// twice, a figure that is no whole number of 64 bits, and anything after the
// document are refused.
func Decode(b []byte) (*Document, error) {
	if len(b) > MaxDocument {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrDocument, len(b), MaxDocument)
	}
	r := reader{json.NewDecoder(bytes.NewReader(b))}
	r.UseNumber()
	d := new(Document)
	var destination, account, secret string
	err := r.object(func(name string) (err error) {
		switch name {
		case "destination":
			destination, err = r.text()
		case "destination_account":
			account, err = r.text()
		case "shared_secret":
			secret, err = r.text()
		case "balance":
			d.Balance, err = r.balance()
		default:
			err = r.skip(0)
		}
		return err
	})
	if err == nil {
		if _, end := r.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("bytes after the document")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if destination == "" {
		destination = account
	}
	if account != "" && account != destination {
		return nil, fmt.Errorf("%w: destination and destination_account differ", ErrDocument)
	}
	d.Destination = ilp.Address(destination)
	if err := decodeSecret(&d.SharedSecret, secret); err != nil {
		return nil, err
	}
	return d, d.Validate()
}

// decodeSecret reads base64 of 32 bytes, of either alphabet and with or without
// padding: servers write both.
func decodeSecret(s *envelope.Secret, text string) error {
	text = string(bytes.TrimRight([]byte(text), "="))
	encoding := base64.RawStdEncoding
	if bytes.ContainsAny([]byte(text), "-_") {
		encoding = base64.RawURLEncoding
	}
	raw, err := encoding.Strict().DecodeString(text)
	if err != nil || len(raw) != len(s) {
		return fmt.Errorf("%w: shared_secret is not 32 bytes in base64", ErrDocument)
	}
	copy(s[:], raw)
	return nil
}

type reader struct{ *json.Decoder }

// object calls field for each name of the object that comes next.
func (r reader) object(field func(name string) error) error {
	open, err := r.Token()
	if err != nil {
		return err
	}
	if open != json.Delim('{') {
		return errors.New("want an object")
	}
	seen := make(map[string]bool)
	for r.More() {
		token, err := r.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok || seen[name] {
			return fmt.Errorf("field %q twice", name)
		}
		seen[name] = true
		if err := field(name); err != nil {
			return err
		}
	}
	_, err = r.Token()
	return err
}

func (r reader) balance() (*Balance, error) {
	b, current := new(Balance), false
	err := r.object(func(name string) (err error) {
		switch name {
		case "current":
			current = true
			b.Current, err = r.figure()
		case "minimum":
			b.Minimum, err = r.limit()
		case "maximum":
			b.Maximum, err = r.limit()
		default:
			err = r.skip(0)
		}
		return err
	})
	if err == nil && !current {
		err = errors.New("balance without current")
	}
	return b, err
}

func (r reader) text() (string, error) {
	token, err := r.Token()
	if err != nil {
		return "", err
	}
	s, ok := token.(string)
	if !ok || s == "" {
		return "", errors.New("want a string that is not empty")
	}
	return s, nil
}

func (r reader) limit() (*int64, error) {
	v, err := r.figure()
	return &v, err
}

// figure reads a whole number, bare or in a string, in its one decimal form.
func (r reader) figure() (int64, error) {
	token, err := r.Token()
	if err != nil {
		return 0, err
	}
	var s string
	switch t := token.(type) {
	case json.Number:
		s = t.String()
	case string:
		s = t
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || strconv.FormatInt(v, 10) != s {
		return 0, fmt.Errorf("want a whole number of 64 bits, got %.32q", s)
	}
	return v, nil
}

// skip passes over one value.
func (r reader) skip(depth int) error {
	token, err := r.Token()
	if err != nil {
		return err
	}
	if token != json.Delim('{') && token != json.Delim('[') {
		return nil
	}
	if depth++; depth > maxDepth {
		return fmt.Errorf("a field nested more than %d deep", maxDepth)
	}
	for r.More() {
		if token == json.Delim('{') {
			if _, err := r.Token(); err != nil {
				return err
			}
		}
		if err := r.skip(depth); err != nil {
			return err
		}
	}
	_, err = r.Token()
	return err
}
