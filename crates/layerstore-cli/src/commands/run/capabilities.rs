//! Which capabilities a command has.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Docker's default set (moby `daemon/pkg/oci/caps/defaults.go`). Devices that MKNOD makes are not obeyed: every mount
/// but those of /dev's own devices is `nodev`.
pub(crate) const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// All there are, also those that this program has no name for.
pub(crate) const ALL: u64 = u64::MAX;

/// Reads `NET_ADMIN`, `cap_net_admin` or `ALL`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    if name == "ALL" {
        return Ok(ALL);
    }
    CapabilitySet::from_name(name).map(|cap| cap.bits()).ok_or_else(|| "no such capability".to_owned())
}

/// Takes from this thread what is not in `kept`, for good: neither set-user-ID files nor files with capabilities bring it
/// back. What is inherited goes too. To be called before the user changes.
pub(super) fn bound(kept: CapabilitySet) -> rustix::io::Result<()> {
    clear_ambient_capability_set()?;
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !kept.contains(one) => remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            // The kernel knows no more.
            Err(_) => break,
        }
    }
    Ok(())
}

/// Leaves this thread `kept`, all of which it has, if it is root's; another user has none.
pub(super) fn keep(kept: CapabilitySet, root: bool) -> rustix::io::Result<()> {
    let kept = if root { kept } else { CapabilitySet::empty() };
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_dockers_and_names_are_the_kernels() {
        assert_eq!(DEFAULT.bits(), 0xa804_25fb);
        assert_eq!(parse("NET_ADMIN"), Ok(1 << 12));
        assert_eq!(parse("cap_sys_admin"), Ok(1 << 21));
        assert_eq!(parse("all"), Ok(ALL));
        assert!(parse("ROOT").is_err() && parse("").is_err());
    }
}
