//! What the fuzz targets of `fuzz/` run: properties that hold for any input. No part of the API.
//!
//! | file | what |
//! | --- | --- |
//! | `ingest.rs` | any bytes as a tar: the parser against itself and the writer |
//! | `differential.rs` | the parser against the `tar` crate |
//! | `trees.rs` | layers applied, against the model of `tree/model.rs` |
//! | `odd.rs` | trees such as a container can make, for `operations.rs` |
//! | `operations.rs` | a store's operations against a model of it, while writing fails |

mod differential;
mod ingest;
mod odd;
mod operations;
mod trees;

pub use differential::tar_differential;
pub use ingest::tar_ingest;
pub use operations::store_operations;
pub use trees::tree_apply;

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Seeds, and inputs that once failed, which are among them.
    fn replay(target: &str, run: impl Fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        let mut count = 0;
        for found in std::fs::read_dir(dir).unwrap() {
            let path = found.unwrap().path();
            println!("{}", path.display());
            run(&std::fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 0);
    }

    #[test]
    fn seeds_hold() {
        replay("tar_ingest", tar_ingest);
        replay("tar_ingest", tar_differential);
        replay("tar_differential", tar_differential);
        replay("tree_apply", tree_apply);
        replay("store_operations", |input| store_operations(input, false));
    }

    /// Every odd tree: made, refused or committed, prepared on, removed and collected.
    #[test]
    fn odd_trees_hold() {
        for which in 0..8 {
            // Prepare, make it, commit, prepare once more, remove, collect, open again.
            let steps = [(6, 0), (112, which), (10, 0), (6, 1), (12, 0), (12, 1), (12, 0), (13, 0), (15, 0)];
            store_operations(&steps.map(|(kind, which)| [kind, which]).concat(), false);
        }
    }
}
