//! The drivers of each recording, as they answered NodeGetCapabilities.

use volumed::csi::Code;

use super::driver::Kind;
use super::node::DriverSpec;

const HOSTPATH: DriverSpec = ("hostpath.csi.k8s.io", Kind::HostPath, &[]);
const KVD: DriverSpec = ("kvd.csi.example.com", Kind::Staging, &[]);

pub const A: &[DriverSpec] = &[HOSTPATH];
pub const B: &[DriverSpec] = &[HOSTPATH];
pub const C: &[DriverSpec] = &[HOSTPATH];
pub const D: &[DriverSpec] =
    &[("kvd.csi.example.com", Kind::WithoutStaging, &[]), ("noop.csi.example.com", Kind::NoOp, &[])];
const G: &[DriverSpec] = &[HOSTPATH];
pub const H: &[DriverSpec] =
    &[KVD, ("long-name.with-upper.zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz.example", Kind::Staging, &[])];
/// i1 had a no-op driver with staging, which mounts nothing either.
const I1: &[DriverSpec] = &[("noop.csi.example.com", Kind::NoOpStaging, &[])];
/// i3 to i6, i8, m and n.
const I: &[DriverSpec] = &[KVD];
const I2: &[DriverSpec] = &[KVD, ("noop.csi.example.com", Kind::NoOpStaging, &[])];
const I7: &[DriverSpec] = &[HOSTPATH, KVD];
pub const J: &[DriverSpec] = &[
    ("a.kvd.example.com", Kind::Staging, &["SINGLE_NODE_MULTI_WRITER", "EXPAND_VOLUME", "GET_VOLUME_STATS"]),
    ("b.kvd.example.com", Kind::Staging, &["VOLUME_MOUNT_GROUP"]),
    ("c.kvd.example.com", Kind::Staging, &[]),
];
const K: &[DriverSpec] = &[
    ("pi.kvd.example.com", Kind::Staging, &[]),
    ("pu.kvd.example.com", Kind::Staging, &[]),
    ("si.kvd.example.com", Kind::Staging, &[]),
    ("su.kvd.example.com", Kind::Staging, &[]),
];

const INTERNAL: Code = Code(13);

/// Those of k as they were while it was recorded: staging and publishing failed, with a final code and with another.
pub const K_FAILING: &[DriverSpec] = &[
    ("pi.kvd.example.com", Kind::Refusing("NodePublishVolume", INTERNAL), &[]),
    ("pu.kvd.example.com", Kind::Refusing("NodePublishVolume", Code::UNAVAILABLE), &[]),
    ("si.kvd.example.com", Kind::Refusing("NodeStageVolume", INTERNAL), &[]),
    ("su.kvd.example.com", Kind::Refusing("NodeStageVolume", Code::UNAVAILABLE), &[]),
];

/// Returns the drivers of a phase (`a/running`).
pub fn of(recording: &str) -> &'static [DriverSpec] {
    match recording.split('/').next().expect("a scenario") {
        "a" => A,
        "b" => B,
        "c" => C,
        "d" => D,
        "e" | "f" => &[],
        "g" => G,
        "h" => H,
        "i1" => I1,
        "i2" => I2,
        "i7" => I7,
        "i3" | "i4" | "i5" | "i6" | "i8" | "m" | "n" => I,
        "j" => J,
        "k" => K,
        other => panic!("scenario {other}"),
    }
}

/// Returns whether a driver of a phase stages.
pub fn stages(recording: &str, driver: &str) -> bool {
    let spec = of(recording).iter().find(|(name, ..)| *name == driver).expect("a driver of the recording");
    spec.1.stages()
}
