package paystream

import "slices"

// span is the bytes [from, to) of a stream.
type span struct{ from, to uint64 }

// spans are spans in order that neither overlap nor touch.
type spans []span

// add joins n into s.
func (s spans) add(n span) spans {
	if n.from >= n.to {
		return s
	}
	i, _ := slices.BinarySearchFunc(s, n.from, func(have span, from uint64) int {
		if have.to < from {
			return -1
		}
		return 1
	})
	j := i
	for ; j < len(s) && s[j].from <= n.to; j++ {
		n.from, n.to = min(n.from, s[j].from), max(n.to, s[j].to)
	}
	return slices.Replace(s, i, j, n)
}

// cut takes n out of s.
func (s spans) cut(n span) spans {
	if n.from >= n.to {
		return s
	}
	for i := 0; i < len(s); i++ {
		have := s[i]
		if have.to <= n.from || have.from >= n.to {
			continue
		}
		var left [2]span
		k := 0
		if have.from < n.from {
			left[k] = span{have.from, n.from}
			k++
		}
		if have.to > n.to {
			left[k] = span{n.to, have.to}
			k++
		}
		s = slices.Replace(s, i, i+1, left[:k]...)
		i += k - 1
	}
	return s
}

// reach returns how far s goes on from at without a gap.
func (s spans) reach(at uint64) uint64 {
	if len(s) > 0 && s[0].from <= at {
		return max(at, s[0].to)
	}
	return at
}
