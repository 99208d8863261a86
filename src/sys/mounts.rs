//! What is mounted, here and in the other mount namespaces one can see.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// The mount tables of all mount namespaces that processes one can see are in, as text.
pub(crate) struct MountTables(Vec<String>);

impl MountTables {
    pub(crate) fn read() -> Self {
        let mut seen = HashSet::new();
        let mut tables: Vec<String> = fs::read_to_string("/proc/self/mountinfo").into_iter().collect();
        seen.extend(fs::read_link("/proc/self/ns/mnt").ok());
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = process.path();
            // Processes end while one looks, and of some one may not see this.
            let Ok(namespace) = fs::read_link(path.join("ns/mnt")) else { continue };
            if seen.insert(namespace) {
                tables.extend(fs::read_to_string(path.join("mountinfo")));
            }
        }
        Self(tables)
    }

    /// Whether any mount, or any option of one, names something below `path`, or that itself.
    pub(crate) fn mention(&self, path: &Path) -> bool {
        // As the tables write it: proc_pid_mountinfo(5), `mangle()` in the kernel.
        let name = path.to_string_lossy();
        let name: String = name.chars().map(escaped).collect();
        let ends = |rest: &str| rest.chars().next().is_none_or(|c| "/ ,:\n\\".contains(c));
        self.0.iter().any(|table| table.match_indices(&*name).any(|(at, _)| ends(&table[at + name.len()..])))
    }
}

fn escaped(c: char) -> String {
    match c {
        ' ' | '\t' | '\n' | '\\' | '#' => format!("\\{:03o}", c as u32),
        _ => c.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_whole_and_escaped() {
        let tables =
            MountTables(vec!["1 2 0:3 / /a\\040b/c rw - overlay overlay rw,lowerdir=/s/trees/1:/s/trees/22\n".into()]);
        for found in ["/a b", "/a b/c", "/s/trees/1", "/s/trees/22", "/s"] {
            assert!(tables.mention(Path::new(found)), "{found}");
        }
        for not in ["/b", "/s/trees/2", "/s/tree"] {
            assert!(!tables.mention(Path::new(not)), "{not}");
        }
        assert!(MountTables::read().mention(Path::new("/proc")));
    }
}
