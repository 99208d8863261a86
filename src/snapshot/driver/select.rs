//! Choosing a driver.

use super::erofs::Erofs;
use super::overlay::{self, Overlay};
use super::{Caching, Chosen, Driver, DriverKind};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use std::sync::Arc;

/// The driver asked for, or for `Auto` the first that works here. `None` for `copy`, which needs none.
pub(in crate::snapshot) fn open(store: &Arc<Store>, kind: DriverKind, caching: Caching) -> Result<Chosen> {
    let mut refused = Vec::new();
    if kind == DriverKind::Auto {
        for kind in [DriverKind::Erofs, DriverKind::Overlay] {
            match stacked(store, kind, caching).and_then(|driver| serves_all(store, kind).map(|()| driver)) {
                Ok(driver) => return Ok((Some(driver), refused)),
                Err(e) => refused.push((kind, e)),
            }
        }
    }
    match kind {
        DriverKind::Auto | DriverKind::Copy => Ok((None, refused)),
        kind => Ok((Some(stacked(store, kind, caching)?), refused)),
    }
}

/// What serves a chain that the driver in use cannot hold, where nobody chose that driver.
pub(in crate::snapshot) fn instead_of(
    store: &Arc<Store>,
    kind: DriverKind,
    caching: Caching,
) -> Option<Box<dyn Driver>> {
    let other = (kind == DriverKind::Erofs).then_some(DriverKind::Overlay)?;
    serves_all(store, other).and_then(|()| stacked(store, other, caching)).ok()
}

/// Whether a driver that works serves images whatever users they have, as what nobody asked for must. Asked for by name it
/// may serve some.
fn serves_all(store: &Store, kind: DriverKind) -> Result<()> {
    if kind == DriverKind::Overlay { overlay::sets_owners(store) } else { Ok(()) }
}

fn stacked(store: &Arc<Store>, kind: DriverKind, caching: Caching) -> Result<Box<dyn Driver>> {
    match kind {
        DriverKind::Erofs => Ok(Box::new(Erofs::new(store.clone(), caching)?)),
        DriverKind::Overlay => Ok(Box::new(Overlay::new(store.clone())?)),
        other => Err(Error::new(ErrorKind::Unsupported, "no driver that stacks directories").subject(other)),
    }
}
