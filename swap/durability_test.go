package swap

// killChildEnv makes the test binary the child of TestKill; its value is the
// folder of the store.
const killChildEnv = "SWAP_KILL_CHILD"

func killChild(string) {}
