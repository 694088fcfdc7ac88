//go:build !race

package devnet_test

const race = false
