//! The packed inode: all bundles an image refers to, one after the other, as one file without a name.

use super::index::Extent;
use crate::format::pack::{BLOCK, Codec, Location};

/// Blocks of a filler: enough to get from anywhere in a cluster to the last byte of the next but one.
const FILLER_BLOCKS: u32 = 3;

/// Where each bundle begins in the packed inode, and its extents.
///
/// Bundles of less than two clusters would make others begin in the cluster they begin in, so such a one begins with
/// the last byte of a cluster. What lies before it is a *filler*: stored bytes that no file is a range of. Any three
/// blocks of a pack will do; `filler` is the first of them.
pub(super) fn place(bundles: &[Location], filler: u32) -> (Vec<u64>, Vec<Extent>) {
    let (mut starts, mut extents, mut end) = (Vec::with_capacity(bundles.len()), Vec::new(), 0u64);
    for bundle in bundles {
        if u64::from(bundle.raw_len) < 2 * BLOCK {
            let start = (end / BLOCK + 3) * BLOCK - 1;
            let len = (start - end) as u32;
            extents.push(Extent { len, block: filler, blocks: FILLER_BLOCKS, codec: Codec::Raw });
            end = start;
        }
        starts.push(end);
        extents.push(Extent::from(*bundle));
        end += u64::from(bundle.raw_len);
    }
    (starts, extents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::erofs::index;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bundles_fit(lens in proptest::collection::vec(prop_oneof![1u32..100, 1u32..9000, 1u32..300_000], 0..40)) {
            let location = |&raw_len: &u32| Location { block: 9, stored_len: raw_len, raw_len, codec: Codec::Raw };
            let bundles: Vec<_> = lens.iter().map(location).collect();
            let (starts, extents) = place(&bundles, 1);
            prop_assert!(index::fits(extents.iter().copied()));
            let (mut end, mut found) = (0, vec![]);
            for e in extents {
                if e.block == 9 { found.push((end, e.len)); }
                // The kernel reads no more of stored bytes than there are.
                prop_assert!(e.len <= e.blocks * 4096 && e.len > 0);
                end += u64::from(e.len);
            }
            prop_assert_eq!(found, starts.into_iter().zip(lens).collect::<Vec<_>>());
        }
    }
}
