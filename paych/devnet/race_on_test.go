//go:build race

package devnet_test

// race: the race detector makes everything several times slower.
const race = true
