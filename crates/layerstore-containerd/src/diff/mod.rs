//! The diff service, `containerd.services.diff.v1`.
//!
//! `Unimplemented` passes a Diff on to the next differ in containerd's list, which is how everything that is not ours is
//! answered. What Apply does not take is given to that list by ourselves (`delegate.rs`).

mod apply;
mod content;
pub(crate) mod delegate;
mod lease;
mod make;

use crate::proto::diff as api;
use crate::server::Server;
use std::sync::Arc;
use std::time::Instant;
use tonic::{Request, Response, Status};

pub(crate) struct Service(pub(crate) Arc<Server>);

#[tonic::async_trait]
impl api::diff_server::Diff for Service {
    async fn apply(&self, request: Request<api::ApplyRequest>) -> Result<Response<api::ApplyResponse>, Status> {
        let begin = Instant::now();
        let (metadata, _, request) = request.into_parts();
        let subject = request.diff.as_ref().map(|d| d.digest.clone()).unwrap_or_default();
        let answer = apply::apply(&self.0, request, &metadata).await;
        self.0.log("Apply", &subject, begin, answer.as_ref().err());
        answer.map(Response::new)
    }

    async fn diff(&self, request: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        let begin = Instant::now();
        let (metadata, _, request) = request.into_parts();
        let subject = request.r#ref.clone();
        let answer = make::diff(&self.0, request, &metadata).await;
        self.0.log("Diff", &subject, begin, answer.as_ref().err());
        answer.map(Response::new)
    }
}
