//! Tars from a grammar: any bytes choose extended headers, sparse files of every format, links and bodies.
//!
//! Single bytes make decisions, so that a fuzzer's small change of the input is a small change of the tar. A member is
//! first made sound and then spoilt: records are dropped, doubled, emptied or exchanged, sizes and names are wrong.

const BLOCK: usize = 512;

const NAMES: [&[u8]; 20] = [
    b"a",
    b"b",
    b"d/",
    b"./",
    b"x/",
    b"d/e",
    b"etc/passwd",
    b"/abs",
    b"./a",
    b"a//b",
    b"d/e/",
    b"s",
    b"",
    b".",
    b"/",
    b"../a",
    b"d/.wh.a",
    b".wh..wh..opq",
    b"caf\xe9",
    b"a-name-that-is-longer-than-the-hundred-bytes-of-a-header/and-more-than-one-component-of-which-is-long/x",
];

const NUMBERS: [&str; 14] =
    ["0", "1", "3", "5", "512", "600", "1024", "4096", "-1", "+7", "007", "", "9223372036854775807", "x"];

const KEYS: [&str; 26] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "atime",
    "uname",
    "comment",
    "hdrcharset",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.name",
    "GNU.sparse.realsize",
    "GNU.sparse.size",
    "GNU.sparse.numblocks",
    "GNU.sparse.map",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "SCHILY.xattr.user.a",
    "SCHILY.xattr.security.capability",
    "LIBARCHIVE.xattr.user.a",
    "LIBARCHIVE.xattr.security.capability",
    "SCHILY.realsize",
    "VENDOR.keyword",
    "RHT.security.selinux",
];

const KINDS: [u8; 14] = [b'0', b'0', b'0', 0, b'7', b'5', b'1', b'2', b'S', b'3', b'4', b'6', b'1', b'Z'];

const MAGICS: [&[u8]; 4] = [b"ustar\x0000", b"ustar  \0", b"\0\0\0\0\0\0\0\0", b"ustar\0  "];

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Decisions in a row; zeros once the input is used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn number(&mut self) -> Vec<u8> {
        self.of(&NUMBERS).into()
    }
}

/// A tar that `input` chooses.
pub(super) fn tar(input: &[u8]) -> Vec<u8> {
    let (mut choices, mut tar) = (Choices(input), Vec::new());
    for _ in 0..1 + choices.below(4) {
        member(&mut choices, &mut tar);
    }
    let end = choices.of(&[2, 2, 2, 1, 0, 3]);
    tar.resize(tar.len() + end * BLOCK, 0);
    tar
}

/// A member with its extended headers.
fn member(choices: &mut Choices<'_>, tar: &mut Vec<u8>) {
    let (records, body) = described(choices);
    let mut extensions = vec![b'x'; usize::from(!records.is_empty())];
    for _ in 0..choices.of(&[0, 0, 0, 1, 1, 2]) {
        let at = choices.below(extensions.len() + 1);
        extensions.insert(at, choices.of(b"LKgLKx"));
    }
    for kind in extensions {
        let body = match kind {
            b'x' => encoded(&records),
            b'g' => encoded(&random_records(choices)),
            _ => [choices.of(&NAMES), &[0][..choices.below(2)]].concat(),
        };
        let mut header = Header { kind, name: b"PaxHeaders/x", ..Header::plain() };
        header.size = body.len() as u64;
        header.write(tar);
        padded(&body, tar);
    }
    let mut header = Header {
        kind: choices.of(&KINDS),
        name: choices.of(&NAMES),
        link: choices.of(&NAMES),
        magic: choices.of(&MAGICS),
        prefix: if choices.below(8) == 0 { choices.of(&NAMES) } else { b"" },
        size: body.len() as u64,
        ranges: vec![],
        more: false,
    };
    if choices.below(6) == 0 {
        header.size = choices.of(&[0, 1, 512, 600, 1536, 4096]);
    }
    let more = match header.kind {
        b'S' => old_map(choices, &mut header),
        _ => vec![],
    };
    header.write(tar);
    tar.extend_from_slice(&more);
    padded(&body, tar);
}

/// Records of a PAX header, spoilt or not, and the body that they describe.
fn described(choices: &mut Choices<'_>) -> (Records, Vec<u8>) {
    let (mut records, body) = match choices.below(8) {
        0 => (vec![], content(choices)),
        1 | 2 => (random_records(choices), content(choices)),
        style => sparse(choices, style % 3),
    };
    for _ in 0..choices.of(&[0, 0, 1, 1, 2, 4]) {
        spoil(choices, &mut records);
    }
    (records, body)
}

fn content(choices: &mut Choices<'_>) -> Vec<u8> {
    match choices.below(8) {
        0..=3 => vec![],
        4 => b"x".to_vec(),
        5 => vec![b'c'; 600],
        6 => vec![0; 512],
        _ => {
            let mut hidden = Vec::new();
            Header { name: b"hidden", ..Header::plain() }.write(&mut hidden);
            hidden
        }
    }
}

fn random_records(choices: &mut Choices<'_>) -> Records {
    (0..choices.below(4)).map(|_| random_record(choices)).collect()
}

fn random_record(choices: &mut Choices<'_>) -> (Vec<u8>, Vec<u8>) {
    let key = choices.of(&KEYS);
    let value = match key {
        "path" | "linkpath" | "GNU.sparse.name" => choices.of(&NAMES).to_vec(),
        "GNU.sparse.map" => choices.of(&["0,1", "0,5,10,0", "", "0", "1,0", "5,3"]).into(),
        "mtime" | "atime" => choices.of(&["1", "-1.5", "0.25", "", ".5", "1e3", "-0.5"]).into(),
        key if key.contains("xattr") => choices.of(&["AQ", "v", "", "AQ=="]).into(),
        _ => choices.number(),
    };
    (key.into(), value)
}

/// A sound sparse file of format 0.0, 0.1 or 1.0.
fn sparse(choices: &mut Choices<'_>, style: usize) -> (Records, Vec<u8>) {
    let ranges: Vec<(u64, u64)> = (0..choices.below(3) as u64).map(|n| (n * 1000, 1 + n)).collect();
    let size = ranges.last().map_or(4096, |(offset, len)| offset + len) + choices.of(&[0, 0, 100]);
    let mut records: Records = Vec::new();
    let mut add = |key: &str, value: String| records.push((format!("GNU.sparse.{key}").into(), value.into()));
    let mut body = Vec::new();
    let numbers: Vec<String> = ranges.iter().flat_map(|(offset, len)| [offset.to_string(), len.to_string()]).collect();
    if style == 2 || choices.below(2) == 0 {
        let (major, minor) = [("0", "0"), ("0", "1"), ("1", "0")][style];
        add("major", major.into());
        add("minor", minor.into());
    }
    add(choices.of(&["size", "realsize"]), size.to_string());
    match style {
        0 => numbers.iter().enumerate().for_each(|(at, number)| add(["offset", "numbytes"][at % 2], number.clone())),
        1 => add("map", numbers.join(",")),
        _ => {
            let lines = [&[ranges.len().to_string()], &numbers[..]].concat().join("\n") + "\n";
            padded(lines.as_bytes(), &mut body);
        }
    }
    if style < 2 {
        add("numblocks", ranges.len().to_string());
    }
    if choices.below(2) == 0 {
        records.push((b"GNU.sparse.name".to_vec(), choices.of(&NAMES).to_vec()));
    }
    body.extend(ranges.iter().flat_map(|(_, len)| vec![b'd'; *len as usize]));
    (records, body)
}

fn spoil(choices: &mut Choices<'_>, records: &mut Records) {
    let at = choices.below(records.len().max(1));
    match choices.below(6) {
        0 => records.insert(at.min(records.len()), random_record(choices)),
        1 => records.push(random_record(choices)),
        _ if records.is_empty() => {}
        2 => drop(records.remove(at)),
        3 => records.push(records[at].clone()),
        4 => records[at].1.clear(),
        _ => records[at].1 = choices.number(),
    }
}

/// An old GNU map in the header, and the blocks that follow it.
fn old_map(choices: &mut Choices<'_>, header: &mut Header<'_>) -> Vec<u8> {
    header.magic = MAGICS[usize::from(choices.below(8) != 0)];
    let stored = header.size;
    header.ranges = match choices.below(4) {
        0 => vec![(0, stored)],
        1 => vec![(100, stored), (5000, 0)],
        2 => vec![(0, 0), (100, stored)],
        _ => vec![],
    };
    if choices.below(4) != 0 {
        return vec![];
    }
    header.more = true;
    let mut block = vec![0; BLOCK];
    block[..12].copy_from_slice(b"00000007000\0");
    block[12..24].copy_from_slice(b"00000000000\0");
    block
}

fn encoded(records: &Records) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (1..).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n);
        body.extend_from_slice(format!("{} ", length.unwrap_or(rest)).as_bytes());
        body.extend_from_slice(&[key, &b"="[..], value, b"\n"].concat());
    }
    body
}

fn padded(body: &[u8], tar: &mut Vec<u8>) {
    tar.extend_from_slice(body);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// One header block.
struct Header<'a> {
    kind: u8,
    name: &'a [u8],
    link: &'a [u8],
    magic: &'a [u8],
    prefix: &'a [u8],
    size: u64,
    ranges: Vec<(u64, u64)>,
    more: bool,
}

impl Header<'_> {
    fn plain() -> Self {
        Header { kind: b'0', name: b"", link: b"", magic: MAGICS[0], prefix: b"", size: 0, ranges: vec![], more: false }
    }

    fn write(&self, tar: &mut Vec<u8>) {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, b"0000644\0");
        put(124, format!("{:011o}\0", self.size).as_bytes());
        put(136, b"00000000017\0");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, self.magic);
        if self.kind == b'S' {
            for (at, (offset, len)) in self.ranges.iter().enumerate() {
                put(386 + 24 * at, format!("{offset:011o}\0{len:011o}\0").as_bytes());
            }
            put(482, &[u8::from(self.more)]);
            put(483, b"00000017000\0");
        } else {
            put(329, b"0000001\x000000003\0");
            put(345, &self.prefix[..self.prefix.len().min(155)]);
        }
        put(148, b"        ");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&block);
    }
}
