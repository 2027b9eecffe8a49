//! What reading and writing costs on a volume, beside a file of the same size on the file system that its image is on, and on
//! a loop device made by hand: what that loses is the kernel's, not the driver's. All of it direct I/O.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use tokio::task::block_in_place;

use crate::figures::{Figure, Printer, Samples};
use crate::loop_bare::{Bare, By, command};
use crate::loop_world::Driver;

/// The size of the volume, and of the file that is read and written.
const VOLUME: i64 = 1 << 30;
const FILE: &str = "512M";

/// One way to read or write.
#[derive(Debug, Clone, Copy)]
struct Way {
    name: &'static str,
    /// fio's `--rw`
    access: &'static str,
    block: &'static str,
    depth: &'static str,
}

const WAYS: [Way; 6] = [
    Way { name: "read-seq", access: "read", block: "1M", depth: "8" },
    Way { name: "write-seq", access: "write", block: "1M", depth: "8" },
    Way { name: "read-rand", access: "randread", block: "4k", depth: "32" },
    Way { name: "write-rand", access: "randwrite", block: "4k", depth: "32" },
    // One at a time: nothing hides what each costs.
    Way { name: "read-rand-alone", access: "randread", block: "4k", depth: "1" },
    Way { name: "write-rand-alone", access: "randwrite", block: "4k", depth: "1" },
];

/// Every way on a volume and, in turns, on the host.
pub(crate) async fn all(printer: &mut Printer, quick: bool) -> anyhow::Result<()> {
    let driver = Driver::new().await?;
    let mut calls = driver.calls.clone();
    let mut volume = driver.volume("io".to_owned(), "ext4")?;
    calls.up(&mut volume, VOLUME).await?;
    let mut bare = Bare::new(&driver.beside_images(), "io")?;
    block_in_place(|| bare.up(VOLUME, By::Programs))?;
    let files = [volume.target.as_path(), bare.target(), &driver.beside_images()].map(|at| at.join("file"));
    let prefill = Way { name: "", access: "write", block: "1M", depth: "8" };
    for file in &files {
        block_in_place(|| fio(file, prefill, None))?;
    }
    let (seconds, turns) = if quick { ("2", 3) } else { ("5", 7) };
    for way in WAYS {
        let mut rates = [(); 3].map(|()| Samples::default());
        for _ in 0..turns {
            for (rates, file) in rates.iter_mut().zip(&files) {
                rates.add_value(block_in_place(|| fio(file, way, Some(seconds)))?);
            }
        }
        let [on_volume, by_hand, on_host] = rates;
        for (whose, rates, aim) in [("loop", on_volume, "0.9 x floor"), ("losetup", by_hand, "")] {
            let name = format!("{whose}-{}", way.name);
            printer.print(Figure::rate(name, "MiB/s", &rates, &on_host, aim))?;
        }
    }
    for file in &files {
        fs::remove_file(file)?;
    }
    block_in_place(|| bare.down())?;
    calls.down(&volume).await
}

/// Reads or writes a file for a time, or once; returns MiB per second.
fn fio(file: &Path, way: Way, seconds: Option<&str>) -> anyhow::Result<f64> {
    let Way { name: _, access, block, depth } = way;
    let mut arguments = ["--name=bench", "--direct=1", "--ioengine=libaio", "--output-format=json"]
        .map(str::to_owned)
        .to_vec();
    arguments.extend([
        format!("--filename={}", file.display()),
        format!("--size={FILE}"),
        format!("--rw={access}"),
        format!("--bs={block}"),
        format!("--iodepth={depth}"),
    ]);
    arguments.extend(seconds.map(|seconds| format!("--runtime={seconds}")));
    arguments.extend(seconds.map(|_seconds| "--time_based".to_owned()));
    let arguments: Vec<&dyn AsRef<std::ffi::OsStr>> = arguments.iter().map(|one| one as _).collect();
    let said: serde_json::Value = serde_json::from_str(&command("fio", &arguments)?)?;
    let direction = if access.ends_with("read") { "read" } else { "write" };
    let rate = said.pointer(&format!("/jobs/0/{direction}/bw_bytes")).and_then(serde_json::Value::as_f64);
    Ok(rate.context("fio says how fast it was")? / f64::from(1 << 20))
}
