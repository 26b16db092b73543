//! Wire types: Istio's workload, security, certificate and node-agent APIs, generated from `proto/*.proto`,
//! and Envoy's discovery types from `envoy-types`. No logic.

#![forbid(unsafe_code)]

pub mod istio_proxy;

pub use envoy_types::pb as envoy;
pub use envoy_types::pb::envoy::service::discovery::v3 as discovery;
pub use envoy_types::pb::google::protobuf as google;

/// Type URL of [`workload::Address`] in xDS.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of [`security::Authorization`] in xDS.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// An encoded `FileDescriptorSet` of every message that a client of the control plane may be sent.
#[cfg(feature = "descriptors")]
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[expect(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
mod generated {
    pub mod istio {
        pub mod security {
            tonic::include_proto!("istio.security");
        }
        pub mod v1 {
            pub mod auth {
                tonic::include_proto!("istio.v1.auth");
            }
        }
        pub mod workload {
            tonic::include_proto!("istio.workload");
            pub mod zds {
                tonic::include_proto!("istio.workload.zds");
            }
        }
    }
}

pub use generated::istio::security;
pub use generated::istio::v1::auth as ca;
pub use generated::istio::workload;
pub use generated::istio::workload::zds;
