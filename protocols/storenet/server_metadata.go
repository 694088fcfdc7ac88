package storenet

import (
	"context"

	"github.com/tallystick/tally/pb/storepb"
)

// serveMetadata is the handler of metadata 1.0.0. What the asker says about
// itself is read and not used.
func (s *Server) serveMetadata(_ context.Context, x *exchange) Status {
	if x.pass.Busy() {
		return statusReset
	}
	var req storepb.WakuMetadataRequest
	if _, err := s.read(x, &req, maxMetadata); err != nil {
		x.out.Err = err
		return statusReset
	}
	s.write(x, &storepb.WakuMetadataResponse{ClusterId: &s.cfg.Cluster, Shards: s.cfg.Shards}, maxMetadata)
	return StatusOK
}
