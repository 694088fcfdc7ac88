// Package routepb has the wire messages of adverts, see route.proto.
package routepb
