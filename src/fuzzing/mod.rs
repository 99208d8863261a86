//! What the fuzz targets of `fuzz/` run: properties that hold for any input. No part of the API.
//!
//! | file | what |
//! | --- | --- |
//! | `ingest.rs` | any bytes as a tar: the parser against itself and the writer |
//! | `differential.rs` | the parser against the `tar` crate and against a model of Go's reader |
//! | `go.rs` | that model |
//! | `grammar.rs` | tars with extended headers and sparse files, made of any bytes |
//! | `images.rs` | image archives and the JSON in them |
//! | `texts.rs` | short texts: digests, platforms, filters, the `STORE` file |
//! | `trees.rs` | layers applied, against the model of `tree/model.rs` |
//! | `odd.rs` | trees such as a container can make, for `operations.rs` |
//! | `operations.rs` | a store's operations against a model of it, while writing fails |

mod differential;
mod go;
mod grammar;
mod images;
mod ingest;
mod odd;
mod operations;
mod texts;
mod trees;

pub use differential::tar_differential;
pub use images::image_archive;
pub use ingest::tar_ingest;
pub use operations::store_operations;
pub use texts::texts;
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
    fn every_target_has_seeds_and_a_corpus_directory_in_git() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        let guide = std::fs::read_to_string(fuzz.join("../CONTRIBUTING.md")).unwrap();
        for found in std::fs::read_dir(fuzz.join("fuzz_targets")).unwrap() {
            let path = found.unwrap().path();
            let target = path.file_stem().unwrap().to_str().unwrap();
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in fuzz/Cargo.toml");
            assert!(guide.contains(&format!("`{target}`")), "{target} is not in CONTRIBUTING.md");
            assert!(std::fs::read_dir(fuzz.join("seeds").join(target)).unwrap().next().is_some(), "{target}: no seeds");
            assert!(fuzz.join("corpus").join(target).join(".gitkeep").exists(), "{target}: no corpus directory");
        }
    }

    #[test]
    fn seeds_are_what_they_seem() {
        // A seed that nothing is compared of would prove nothing.
        let image = |name: &str| {
            let seed = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name)).unwrap();
            images::plans(&seed)
        };
        assert_eq!(image("image_archive/layout"), 1);
        assert_eq!(image("image_archive/docker"), 1);
    }

    #[test]
    fn a_grammar_makes_tars_that_both_accept() {
        let mut state = 1u32;
        let mut accepted = 0;
        for _ in 0..5_000 {
            let input: Vec<u8> = (0..40)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            accepted += usize::from(differential::accepted_by_both(&grammar::tar(&input)));
            tar_differential(&[&[2], &input[..]].concat());
        }
        assert!(accepted > 100, "{accepted}");
    }

    #[test]
    fn seeds_hold() {
        replay("tar_ingest", tar_ingest);
        replay("tar_ingest", tar_differential);
        replay("tar_differential", tar_differential);
        replay("image_archive", image_archive);
        replay("texts", texts);
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
