//! What `build.rs` made of `proto/`.

#![expect(unreachable_pub, clippy::all, reason = "generated code")]

pub mod types {
    tonic::include_proto!("containerd.types");
}

/// Nested as the packages are, for the generated code refers to its neighbours that way.
pub mod services {
    pub mod snapshots {
        pub mod v1 {
            tonic::include_proto!("containerd.services.snapshots.v1");
        }
    }
    pub mod diff {
        pub mod v1 {
            tonic::include_proto!("containerd.services.diff.v1");
        }
    }
    pub mod leases {
        pub mod v1 {
            tonic::include_proto!("containerd.services.leases.v1");
        }
    }
    pub mod content {
        pub mod v1 {
            tonic::include_proto!("containerd.services.content.v1");
        }
    }
}

pub use services::content::v1 as content;
pub use services::diff::v1 as diff;
pub use services::leases::v1 as leases;
pub use services::snapshots::v1 as snapshots;
