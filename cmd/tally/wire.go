package main

// version of this program.
const version = "0.1.0-dev"

// realDeps joins the commands to the parts that this build has. It is the only
// place that does.
func realDeps() Deps {
	return systemIO(Deps{Version: version})
}
