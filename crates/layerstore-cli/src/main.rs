//! The `layerstore` command.
fn main() {}
