//! scratch
use layerstore::*;
use std::io::Read;
struct Count(std::sync::atomic::AtomicU64);
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let t = std::time::Instant::now();
    match args[1].as_str() {
        "inflate" => {
            for p in &args[2..] {
                let mut r = BlobReader::new(std::fs::File::open(p).unwrap(), &Limits::default()).unwrap();
                let mut b = vec![0u8; 1 << 20];
                let mut n = 0u64;
                loop {
                    let k = r.read(&mut b).unwrap();
                    if k == 0 {
                        break;
                    }
                    n += k as u64;
                }
                println!("inflate {n} {:?}", t.elapsed());
            }
        }
        "raw" => {
            for p in &args[2..] {
                let mut r = flate2::read::MultiGzDecoder::new(std::io::BufReader::with_capacity(
                    1 << 18,
                    std::fs::File::open(p).unwrap(),
                ));
                let mut b = vec![0u8; 1 << 20];
                let mut n = 0u64;
                loop {
                    let k = r.read(&mut b).unwrap();
                    if k == 0 {
                        break;
                    }
                    n += k as u64;
                }
                println!("raw inflate {n} {:?}", t.elapsed());
            }
        }
        "import" => {
            let e = |k: &str, d: u32| std::env::var(k).ok().and_then(|l| l.parse().ok()).unwrap_or(d) << 10;
            let mut c = Chunking::default();
            c.min = e("MIN", 16);
            c.avg = e("AVG", 64);
            c.max = e("MAX", 256);
            c.bundle = e("BUNDLE", 256);
            c.small_file = e("SMALL", 64);
            let s = Store::open_with(&args[2], &OpenOptions::default().chunking(c)).unwrap();
            let level: i32 = std::env::var("LEVEL").ok().and_then(|l| l.parse().ok()).unwrap_or(3);
            for p in &args[3..] {
                let t = std::time::Instant::now();
                let o = ImportOptions::default().compress(Compress::Zstd(level));
                let r = s.import_layer(std::fs::File::open(p).unwrap(), &o, &()).unwrap();
                println!("{p}: {:?} {:?} {:?}", r.0, r.1, t.elapsed());
            }
            println!("all {:?}", t.elapsed());
        }
        "export" => {
            let s = Store::open(&args[2]).unwrap();
            for l in s.layers().unwrap() {
                let t = std::time::Instant::now();
                let mut out = std::io::sink();
                let e = s
                    .layer(&l.diff_id)
                    .unwrap()
                    .export(&mut out, std::num::NonZeroUsize::new(2).unwrap(), &())
                    .unwrap();
                println!("{} {:?} {:.0} MB/s", l.diff_id, e, e.tar_size as f64 / 1e6 / t.elapsed().as_secs_f64());
            }
        }
        _ => {}
    }
}
