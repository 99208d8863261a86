//! Layers that are not taken here, for the other differs of containerd's list.
//!
//! containerd's diff service tries the next differ of its list when one says Unimplemented. Its transfer service has one
//! differ and no list: there, Unimplemented ends a pull with "method Transfer not implemented". So whoever asks, what is
//! refused here is given to containerd's diff service. That asks us again, first of its list; it is told Unimplemented
//! then, and goes on to the next. A daemon takes with this plugin what it takes without.
//!
//! Source: containerd `plugins/services/diff/local.go` (`Apply`), `plugins/transfer/plugin.go`.

use super::content::Content;
use crate::proto::diff as api;
use crate::proto::diff::diff_client::DiffClient;
use crate::server::Server;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use tonic::{Code, Status};

/// Applies that containerd was asked for, by what they are of.
#[derive(Debug, Default)]
pub(crate) struct Delegated(Mutex<HashSet<String>>);

impl Delegated {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether containerd asks us what we asked it.
    pub(super) fn has(&self, request: &api::ApplyRequest) -> bool {
        self.lock().contains(&identity(request))
    }
}

/// The blob, and what it is applied to: nobody applies the same twice at a time.
fn identity(request: &api::ApplyRequest) -> String {
    let digest = request.diff.as_ref().map_or("", |diff| &diff.digest);
    format!("{digest} {:?}", request.mounts)
}

struct Entry<'s>(&'s Delegated, String);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

/// Whether another differ may take what this one refused: not what is damaged or beyond a limit, nor what failed.
pub(super) fn may_be_taken(refused: &Status) -> bool {
    matches!(refused.code(), Code::Unimplemented | Code::InvalidArgument)
}

/// Has containerd apply a layer that was `refused` here. `passes` says that the layer or the mounts are of a kind that is
/// not for us at all; then Unimplemented is the answer where containerd cannot be asked.
pub(super) async fn apply(
    server: &Arc<Server>,
    request: api::ApplyRequest,
    content: Content,
    refused: Status,
    passes: bool,
) -> Result<api::ApplyResponse, Status> {
    let identity = identity(&request);
    let subject = request.diff.as_ref().map_or(String::new(), |diff| diff.digest.clone());
    server.delegated.lock().insert(identity.clone());
    let _entry = Entry(&server.delegated, identity);
    let mut client = DiffClient::new(content.channel());
    let failed = match client.apply(content.request(request)).await {
        Ok(answer) => {
            tracing::warn!(blob = subject, reason = refused.message(), "not taken here; another differ applied it");
            return Ok(answer.into_inner());
        }
        Err(failed) => failed,
    };
    let reason = refused.message();
    match failed.code() {
        // It is a differ's, and says what is wrong with the layer.
        code if code != Code::Unimplemented && code != Code::Unavailable => {
            Err(Status::new(code, format!("{reason}; containerd's own differ failed, too: {}", failed.message())))
        }
        _ if passes => Err(Status::unimplemented(reason)),
        Code::Unavailable => {
            let address = server.config.containerd.address.display();
            let text = format!("{reason}; containerd could not be asked at {address} for another differ");
            Err(Status::failed_precondition(text))
        }
        _ => Err(Status::failed_precondition(format!("{reason}; no other differ of containerd's takes it"))),
    }
}
