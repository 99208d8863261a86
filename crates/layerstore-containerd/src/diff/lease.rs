//! Leases of containerd's, which keep a new blob until its client refers to it.
//!
//! containerd's own differ runs inside it and so under the lease of whoever asked. containerd does not tell a proxy
//! plugin of that lease. So the blob is written under a lease of ours, which expires; and it is added to the leases that
//! keep the snapshot it is made of, which are the client's. With one of those, ours goes at once.
//!
//! Source: containerd `core/leases/lease.go`, `core/metadata/content.go` (`addContentLease`), `core/metadata/gc.go`.

use super::content::Content;
use crate::proto::leases::leases_client::LeasesClient;
use crate::proto::leases::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, ListResourcesRequest, Resource,
};
use layerstore::Time;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::Status;
use tonic::transport::Channel;

/// How long a blob stays that nobody refers to.
const EXPIRES: Duration = Duration::from_secs(3600);
/// The label that says when a lease ends, in the form of RFC 3339.
const EXPIRE_LABEL: &str = "containerd.io/gc.expire";
/// Leases to look through for the client's. A machine with more keeps the blob by ours.
const LEASES_MAX: usize = 64;

/// A lease that a blob is written under.
pub(super) struct Lease {
    client: LeasesClient<Channel>,
    content: Content,
    /// Ours; `None` where the call named one.
    own: Option<String>,
}

impl Lease {
    /// The lease that the call names, or a new one. What is returned beside it writes under that lease.
    pub(super) async fn take(content: Content) -> Result<(Self, Content), Status> {
        let client = LeasesClient::new(content.channel());
        if content.lease().is_some() {
            return Ok((Self { client, content: content.clone(), own: None }, content));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let secs = i64::try_from((now + EXPIRES).as_secs()).unwrap_or(i64::MAX);
        let labels = [(EXPIRE_LABEL.to_owned(), Time { secs, nanos: 0 }.to_rfc3339())].into();
        let create = content.request(CreateRequest { id: super::make::unique("lease"), labels });
        let made = client.clone().create(create).await.map_err(|e| {
            Status::new(e.code(), format!("make a lease in containerd for the new layer: {}", e.message()))
        })?;
        let id = made.into_inner().lease.unwrap_or_default().id;
        let leased = content.clone().with_lease(&id)?;
        Ok((Self { client, content, own: Some(id) }, leased))
    }

    /// The blob is written: adds it to the leases that keep the snapshot `key` ("NAMESPACE/NUMBER/KEY"), and ends ours if
    /// there is one. What fails here leaves the blob to our lease.
    pub(super) async fn hand_over(mut self, digest: &str, key: &str) {
        let Some(own) = self.own.clone() else { return };
        let name = key.splitn(3, '/').nth(2).unwrap_or(key);
        match self.add_to_clients(digest, name, &own).await {
            Ok(0) => {}
            Ok(_) => self.end(&own).await,
            Err(error) => tracing::debug!(%error, "the layer is kept by our lease only"),
        }
    }

    /// Nothing was written.
    pub(super) async fn drop_unused(mut self) {
        if let Some(own) = self.own.clone() {
            self.end(&own).await;
        }
    }

    async fn add_to_clients(&mut self, digest: &str, name: &str, own: &str) -> Result<usize, Status> {
        let all = self.client.list(self.content.request(ListRequest::default())).await?.into_inner().leases;
        let mut added = 0;
        for lease in all.into_iter().filter(|lease| lease.id != own).take(LEASES_MAX) {
            let list = ListResourcesRequest { id: lease.id.clone() };
            // One that ended meanwhile keeps nothing.
            let Ok(found) = self.client.list_resources(self.content.request(list)).await else { continue };
            let keeps = |r: &Resource| r.id == name && r.r#type.starts_with("snapshots/");
            if found.into_inner().resources.iter().any(keeps) {
                let resource = Some(Resource { id: digest.to_owned(), r#type: "content".to_owned() });
                let add = AddResourceRequest { id: lease.id, resource };
                added += usize::from(self.client.add_resource(self.content.request(add)).await.is_ok());
            }
        }
        Ok(added)
    }

    async fn end(&mut self, id: &str) {
        let delete = DeleteRequest { id: id.to_owned(), sync: false };
        // One that stays ends with its time.
        let _ = self.client.delete(self.content.request(delete)).await;
    }
}
