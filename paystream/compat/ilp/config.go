package ilp

import (
	"errors"
	"fmt"
	"time"

	"github.com/tallystick/tally/paystream/compat/oer"
)

// ConfigAddress is where a client asks its connector for its configuration.
const ConfigAddress Address = "peer.config"

// maxAssetCode bounds the code of an asset, in bytes. Codes in use have three to
// twelve.
const maxAssetCode = 64

// configCondition is what every request of a configuration carries: the
// fulfilment is 32 zero bytes and proves nothing.
var configCondition = Fulfilment{}.Condition()

// ErrConfig: a request of a configuration that is none: it carries money, has
// another condition, or has expired.
var ErrConfig = errors.New("ilp: not a request of a configuration: want amount 0, the condition of 32 zero bytes and a time to come")

// Config is what a connector tells its client (ILDCP).
type Config struct {
	Address    Address
	AssetScale uint8
	AssetCode  string
}

// ConfigRequest returns the request of a configuration.
func ConfigRequest(expiresAt time.Time) *Prepare {
	return &Prepare{ExpiresAt: expiresAt, Condition: configCondition, Destination: ConfigAddress}
}

// CheckConfigRequest returns ErrConfig where p, which is for ConfigAddress, is no
// request of a configuration.
func CheckConfigRequest(p *Prepare, now time.Time) error {
	if p.Amount != 0 || p.Condition != configCondition || !now.Before(p.ExpiresAt) {
		return ErrConfig
	}
	return nil
}

// Validate returns what is wrong with c.
func (c Config) Validate() error {
	if err := c.Address.Validate(); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if len(c.AssetCode) > maxAssetCode {
		return fmt.Errorf("config: asset code of %d bytes: %w", len(c.AssetCode), oer.ErrTooLong)
	}
	return nil
}

// Fulfil returns the answer to a request.
func (c Config) Fulfil() (*Fulfil, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	data := oer.AppendVar(nil, string(c.Address))
	data = append(data, c.AssetScale)
	return &Fulfil{Data: oer.AppendVar(data, c.AssetCode)}, nil
}

// DecodeConfig reads the data of the answer.
func DecodeConfig(data []byte) (Config, error) {
	r := oer.NewReader(data)
	c := Config{
		Address:    Address(r.Var(MaxAddress)),
		AssetScale: r.U8(),
		AssetCode:  string(r.Var(maxAssetCode)),
	}
	if err := r.End(); err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	return c, c.Validate()
}
