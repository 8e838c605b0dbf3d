//! The `podnet` command.

fn main() {}
