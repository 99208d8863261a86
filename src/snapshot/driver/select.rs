//! Choosing a driver.

use super::erofs::Erofs;
use super::{Chosen, DriverKind};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use std::sync::Arc;

/// The driver asked for, or for `Auto` the first that works here. `None` for `copy`, which needs none.
pub(in crate::snapshot) fn open(store: &Arc<Store>, kind: DriverKind) -> Result<Chosen> {
    match kind {
        DriverKind::Copy => Ok((None, vec![])),
        DriverKind::Erofs => Ok((Some(Box::new(Erofs::new(store.clone())?)), vec![])),
        other => Err(Error::new(ErrorKind::Unsupported, "this driver is not here yet").subject(other)),
    }
}
