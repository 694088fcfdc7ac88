package durabletest

import (
	"errors"
	"slices"
	"testing"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

// The store uses Scan; the rest of the datastore in memory behaves as a map
// datastore does.
func TestMemDatastore(t *testing.T) {
	ctx := t.Context()
	d := newMemDatastore(nil)
	for _, k := range []string{"/c", "/a/2", "/a/1", "/b"} {
		if err := d.Put(ctx, datastore.RawKey(k), []byte(k)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Delete(ctx, datastore.RawKey("/b")); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(ctx, datastore.RawKey("/empty"), nil); err != nil {
		t.Fatal(err)
	}
	for range 2 { // from the fresh part, then from the ordered one
		for key, size := range map[string]int{"/a/1": 4, "/empty": 0, "/b": -1, "/none": -1} {
			k := datastore.RawKey(key)
			value, err := d.Get(ctx, k)
			if size < 0 != errors.Is(err, datastore.ErrNotFound) || len(value) != max(size, 0) {
				t.Errorf("Get(%s) = %q, %v", key, value, err)
			}
			if has, err := d.Has(ctx, k); has != (size >= 0) || err != nil {
				t.Errorf("Has(%s) = %v, %v", key, has, err)
			}
			if n, _ := d.GetSize(ctx, k); n != size {
				t.Errorf("GetSize(%s) = %d", key, n)
			}
		}
		res, err := d.Query(ctx, query.Query{Prefix: "/a", Orders: []query.Order{query.OrderByKeyDescending{}}})
		if err != nil {
			t.Fatal(err)
		}
		entries, err := res.Rest()
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, e := range entries {
			keys = append(keys, e.Key)
		}
		if want := []string{"/a/2", "/a/1"}; !slices.Equal(keys, want) {
			t.Errorf("Query = %q, want %q", keys, want)
		}
	}
}
