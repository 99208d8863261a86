//! Leases: keeping things from gc while one works with them.
//!
//! A lease is a row in the database with what it keeps. It ends when it is dropped, when its time is over, or when the
//! process that took it ends: then the next open or gc removes it.

use super::index::{Change, ImageInfo, LeaseRef, LeaseRow};
use super::open::Store;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::process;
use std::time::{Duration, SystemTime};

/// Keeps layers and images from gc. Dropped, it lets go of them.
///
/// ```
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # let store = layerstore::Store::open(dir.path().join("store"))?;
/// # let tar = [0; 1024];
/// # let (layer, _) = store.import_layer(&tar[..], &Default::default(), &())?;
/// let lease = store.lease(Some(std::time::Duration::from_secs(3600)))?;
/// lease.layer(&layer.diff_id)?;
/// store.release_layer(&layer.diff_id)?; // gc does not take it yet
/// # Ok::<(), layerstore::Error>(())
/// ```
#[derive(Debug)]
pub struct Lease<'s> {
    store: &'s Store,
    n: u64,
    released: std::cell::Cell<bool>,
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

fn expiry(ttl: Option<Duration>) -> Option<i64> {
    ttl.map(|ttl| now().saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)))
}

impl LeaseRow {
    /// Whether nothing is kept by it any more.
    pub(crate) fn is_over(&self, now: i64) -> bool {
        self.expires.is_some_and(|at| at <= now) || process::has_ended(&self.owner)
    }
}

impl Store {
    /// Takes a lease that keeps nothing yet. It ends after `ttl`, in seconds of the system's clock; without one only
    /// when it is dropped or this process ends.
    ///
    /// # Errors
    /// `Io` or `Busy` from the database.
    pub fn lease(&self, ttl: Option<Duration>) -> Result<Lease<'_>> {
        self.lease_of(ttl, |_, _| Ok(()))
    }

    /// A lease on `layers` as long as this process lives, on those too that are not there yet.
    pub(crate) fn lease_layers<'a>(&self, layers: impl IntoIterator<Item = &'a Digest>) -> Result<Lease<'_>> {
        self.lease_of(None, |change, n| {
            layers.into_iter().try_for_each(|layer| change.add_lease_ref(n, &LeaseRef::Layer(*layer)))
        })
    }

    fn lease_of(&self, ttl: Option<Duration>, keep: impl FnOnce(&Change<'_>, u64) -> Result<()>) -> Result<Lease<'_>> {
        let owner = process::this();
        let n = self.with_index(|index| {
            index.write_together(|change| {
                let n = change.add_lease(&owner, expiry(ttl))?;
                keep(change, n).map(|()| n)
            })
        })?;
        Ok(Lease { store: self, n, released: false.into() })
    }

    /// Removes leases whose time is over or whose process has ended. Returns how many.
    pub(crate) fn end_leases(&self) -> Result<u64> {
        self.with_index(|index| {
            let now = now();
            let over: Vec<_> = index.leases()?.iter().filter(|l| l.is_over(now)).map(|l| (l.n, l.expires)).collect();
            if over.is_empty() {
                return Ok(0);
            }
            index.write_together(|change| {
                over.iter().try_for_each(|&(n, expires)| change.drop_lease_as_seen(n, expires))
            })?;
            Ok(over.len() as u64)
        })
    }
}

impl Lease<'_> {
    /// Keeps a layer.
    ///
    /// # Errors
    /// `NotFound` if the store does not have it; `FailedPrecondition` if the lease's time is over.
    pub fn layer(&self, diff_id: &Digest) -> Result<()> {
        self.keep(&[*diff_id], &[])
    }

    /// Keeps an image: its layers, configuration and manifest, whatever happens to its name.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn image(&self, image: &ImageInfo) -> Result<()> {
        self.keep(&image.layers, &[LeaseRef::Blob(image.config), LeaseRef::Blob(image.manifest)])
    }

    /// Keeps a chain: its layers, and what drivers made of it.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn chain(&self, layers: &[Digest]) -> Result<()> {
        let chains: Vec<_> = chain_ids(layers).map(LeaseRef::Chain).collect();
        self.keep(layers, &chains)
    }

    /// Keeps a layer from the transaction on that makes it visible.
    pub(crate) fn keep_with(&self, change: &Change<'_>, layer: &Digest) -> Result<()> {
        match change.has_lease(self.n)? {
            true => change.add_lease_ref(self.n, &LeaseRef::Layer(*layer)),
            false => Err(over()),
        }
    }

    fn keep(&self, layers: &[Digest], others: &[LeaseRef]) -> Result<()> {
        let keep = |change: &Change<'_>| {
            if !change.has_lease(self.n)? {
                return Err(over());
            }
            for layer in layers {
                if !change.has_layer(layer)? {
                    return Err(Error::not_found("no such layer").subject(layer));
                }
                change.add_lease_ref(self.n, &LeaseRef::Layer(*layer))?;
            }
            others.iter().try_for_each(|other| change.add_lease_ref(self.n, other))
        };
        self.store.with_index(|index| index.write_together(keep))
    }

    /// Lets the lease end `ttl` from now.
    ///
    /// # Errors
    /// `FailedPrecondition` if its time was over and gc took it.
    pub fn renew(&self, ttl: Option<Duration>) -> Result<()> {
        match self.store.with_index(|index| index.write_together(|change| change.renew_lease(self.n, expiry(ttl))))? {
            true => Ok(()),
            false => Err(over()),
        }
    }

    /// Ends the lease with a transaction that keeps otherwise what it kept.
    pub(crate) fn end_with(&self, change: &Change<'_>) -> Result<()> {
        self.released.set(true);
        change.drop_lease(self.n)
    }
}

/// The ids of the chain of `layers` and of all that it stands on.
pub(crate) fn chain_ids(layers: &[Digest]) -> impl Iterator<Item = Digest> {
    layers.iter().scan(None, |chain, layer| {
        *chain = Some(Digest::chain(*chain, *layer));
        *chain
    })
}

fn over() -> Error {
    Error::new(ErrorKind::FailedPrecondition, "the lease's time is over")
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if !self.released.get() {
            // One that stays ends with its time or with this process.
            let _ = self.store.with_index(|index| index.write_together(|change| change.drop_lease(self.n)));
        }
    }
}
