//! Rust from containerd's protocol definitions in `proto/`, without protoc.

use std::path::Path;

const SERVICES: [&str; 4] = [
    "github.com/containerd/containerd/api/services/snapshots/v1/snapshots.proto",
    "github.com/containerd/containerd/api/services/diff/v1/diff.proto",
    "github.com/containerd/containerd/api/services/content/v1/content.proto",
    "github.com/containerd/containerd/api/services/leases/v1/leases.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(SERVICES, [Path::new("proto")])?;
    // The types of google.protobuf come with protox and prost-types; the rest is generated here.
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
