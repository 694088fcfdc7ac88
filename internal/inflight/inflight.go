// Package inflight keeps what is in flight, and ends nearly in the order in which it
// began: in a list whose first entries fall away, which finds, adds and deletes
// without a hash and without looking far, and is walked in order.
//
//	dropped │ 41 42 43 45 46 │ spare
//	        head          ▲ 44 ended early
//
// A [Map] has ids that ascend. A [Queue] has names of any kind, and is for few of them:
// one that ends out of its order is looked for from the oldest.
package inflight

import (
	"cmp"
	"iter"
	"slices"
)

// entries is what both are made of.
type entries[K comparable, V any] struct {
	list []entry[K, V] // what is before head is zero
	head int
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// Len returns how many entries there are.
func (l *entries[K, V]) Len() int { return len(l.list) - l.head }

// All goes through the entries in order. They must not change meanwhile.
func (l *entries[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for i := range l.list[l.head:] {
			if e := &l.list[l.head+i]; !yield(e.key, e.value) {
				return
			}
		}
	}
}

// push adds an entry at the end.
func (l *entries[K, V]) push(key K, v V) {
	if len(l.list) == cap(l.list) && l.head > len(l.list)/2 {
		n := copy(l.list, l.list[l.head:])
		clear(l.list[n:])
		l.list, l.head = l.list[:n], 0
	}
	l.list = append(l.list, entry[K, V]{key, v})
}

// remove deletes the entry at i.
func (l *entries[K, V]) remove(i int) {
	if i-l.head < len(l.list)-i { // the shorter side moves
		copy(l.list[l.head+1:i+1], l.list[l.head:i])
		l.list[l.head] = entry[K, V]{}
		l.head++
	} else {
		l.list = slices.Delete(l.list, i, i+1)
	}
	if l.head == len(l.list) {
		l.list, l.head = l.list[:0], 0
	}
}

// Map is a map from ids to values, sorted by id. Any order of ids works; ascending ones
// are quick. The zero Map is empty.
type Map[V any] struct{ entries[uint64, V] }

// Get returns the value of id.
func (m *Map[V]) Get(id uint64) (v V, ok bool) {
	if i, ok := m.find(id); ok {
		return m.list[i].value, true
	}
	return v, false
}

// find returns where id is, or would be.
func (m *Map[V]) find(id uint64) (int, bool) {
	live := m.list[m.head:]
	if len(live) == 0 || id > live[len(live)-1].key {
		return len(m.list), false
	}
	// Without gaps it stands here.
	if i := id - live[0].key; i < uint64(len(live)) && live[i].key == id {
		return m.head + int(i), true
	}
	i, ok := slices.BinarySearchFunc(live, id, func(e entry[uint64, V], id uint64) int { return cmp.Compare(e.key, id) })
	return m.head + i, ok
}

// Put sets the value of id.
func (m *Map[V]) Put(id uint64, v V) {
	switch i, ok := m.find(id); {
	case ok:
		m.list[i].value = v
	case i < len(m.list):
		m.list = slices.Insert(m.list, i, entry[uint64, V]{id, v})
	default:
		m.push(id, v)
	}
}

// Delete forgets id, if it is there.
func (m *Map[V]) Delete(id uint64) {
	if i, ok := m.find(id); ok {
		m.remove(i)
	}
}

// IDs returns the ids in order, for a walk that changes the map.
func (m *Map[V]) IDs() []uint64 {
	if m.Len() == 0 {
		return nil
	}
	ids := make([]uint64, 0, m.Len())
	for id := range m.All() {
		ids = append(ids, id)
	}
	return ids
}

// Queue is a map from names to values, the oldest first. The zero Queue is empty.
type Queue[K comparable, V any] struct{ entries[K, V] }

// Get returns the value of a name.
func (q *Queue[K, V]) Get(name K) (v V, ok bool) {
	if i := q.find(name); i >= 0 {
		return q.list[i].value, true
	}
	return v, false
}

func (q *Queue[K, V]) find(name K) int {
	if n := len(q.list) - 1; n >= q.head && q.list[n].key == name {
		return n // it began just now
	}
	for i := q.head; i < len(q.list); i++ {
		if q.list[i].key == name {
			return i
		}
	}
	return -1
}

// Add adds a name, which must not be there.
func (q *Queue[K, V]) Add(name K, v V) { q.push(name, v) }

// Take returns the value of a name and forgets it.
func (q *Queue[K, V]) Take(name K) (v V, ok bool) {
	i := q.find(name)
	if i < 0 {
		return v, false
	}
	v = q.list[i].value
	q.remove(i)
	return v, true
}
