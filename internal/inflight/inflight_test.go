package inflight

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestMap compares with Go's map, under ids that mostly ascend and mostly end in order.
func TestMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m Map[*int]
		want := map[uint64]*int{}
		next := rapid.SampledFrom([]uint64{0, 1, 1 << 63, 1<<64 - 300}).Draw(t, "first")
		first := next
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"next", "next", "gap", "any", "oldest", "oldest", "delete"}).Draw(t, "op") {
			case "gap":
				next += 2
				fallthrough
			case "next":
				next++
				v := new(int)
				m.Put(next, v)
				want[next] = v
			case "any":
				id, v := rapid.Uint64Range(first, next+2).Draw(t, "id"), new(int)
				m.Put(id, v)
				want[id] = v
				next = max(next, id)
			case "oldest":
				if ids := m.IDs(); len(ids) > 0 {
					m.Delete(ids[0])
					delete(want, ids[0])
				}
			case "delete":
				id := rapid.Uint64Range(first, next+2).Draw(t, "id")
				m.Delete(id)
				delete(want, id)
			}
			compare(t, &m, want, rapid.Uint64Range(first, next+2).Draw(t, "look"))
		}
	})
}

func compare(t *rapid.T, m *Map[*int], want map[uint64]*int, look uint64) {
	if got, all := maps.Collect(m.All()), m.Len(); !maps.Equal(got, want) || all != len(want) {
		t.Fatalf("%d entries: %v, want %v", all, got, want)
	}
	if ids := m.IDs(); !slices.IsSorted(ids) || !slices.Equal(ids, slices.Sorted(maps.Keys(want))) {
		t.Fatal(ids)
	}
	v, ok := m.Get(look)
	if w, there := want[look]; ok != there || v != w {
		t.Fatal(look, v, ok)
	}
	holdsNothing(t, &m.entries)
}

// holdsNothing fails where what was deleted is still held.
func holdsNothing[K comparable](t *rapid.T, l *entries[K, *int]) {
	for _, list := range [...][]entry[K, *int]{l.list[:l.head], l.list[len(l.list):cap(l.list)]} {
		for i := range list {
			if list[i].value != nil {
				t.Fatal("what is gone is still held")
			}
		}
	}
}

// TestQueue compares with Go's map.
func TestQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q Queue[string, *int]
		var order []string
		want := map[string]*int{}
		name := rapid.StringMatching("[a-d]{1,3}")
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			n := name.Draw(t, "name")
			if len(order) > 0 && rapid.Bool().Draw(t, "oldest") {
				n = order[0]
			}
			v, ok := q.Get(n)
			if w, there := want[n]; ok != there || v != w {
				t.Fatal(n, v, ok)
			}
			if rapid.Bool().Draw(t, "add") && !ok {
				v := new(int)
				q.Add(n, v)
				want[n], order = v, append(order, n)
			} else if took, was := q.Take(n); was != ok || took != v {
				t.Fatal(n, took, was)
			} else if was {
				delete(want, n)
				order = slices.DeleteFunc(order, func(o string) bool { return o == n })
			}
			at := 0
			for n, v := range q.All() {
				if n != order[at] || v != want[n] {
					t.Fatal(n, order)
				}
				at++
			}
			if q.Len() != len(order) || at != len(order) {
				t.Fatal(q.Len(), order)
			}
			holdsNothing(t, &q.entries)
		}
	})
}

// In a window that moves on nothing is allocated.
func TestMapAllocates(t *testing.T) {
	var m Map[int]
	last := uint64(0)
	for ; last < 1000; last++ {
		m.Put(last, 1)
	}
	move := func() {
		for range 5000 {
			m.Put(last, 1)
			m.Delete(last - 1000)
			last++
		}
	}
	move()
	if n := testing.AllocsPerRun(10, move); n > 0 {
		t.Fatal(n)
	}
}

// BenchmarkMap is a window of 1024 that moves on, beside Go's map.
func BenchmarkMap(b *testing.B) {
	b.Run("inflight", func(b *testing.B) {
		var m Map[uint64]
		for i := range uint64(b.N) {
			m.Put(i+1024, i)
			if v, _ := m.Get(i); v > i {
				b.Fatal(v)
			}
			m.Delete(i)
		}
	})
	b.Run("map", func(b *testing.B) {
		m := make(map[uint64]uint64)
		for i := range uint64(b.N) {
			m[i+1024] = i
			if m[i] > i {
				b.Fatal(i)
			}
			delete(m, i)
		}
	})
}
