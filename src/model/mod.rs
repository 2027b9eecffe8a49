//! The values that travel through volumed. No I/O, no clock, nothing that can fail for a reason outside its arguments.

#![warn(clippy::wildcard_enum_match_arm)]

mod ambient;
mod call;
mod disk;
mod driver;
mod event;
mod have;
mod health;
mod ids;
mod known_disk;
mod layout;
mod luks;
mod lun;
mod mount;
mod operator;
mod reading;
mod record;
mod secret;
mod side_by_side;
mod status;
mod step;
mod vol_data;
mod want;

pub use ambient::{Ambient, Millis};
pub use call::{
    AccessMode, Capability, ExpandArguments, PublishArguments, StageArguments, StagingKind, VolumeMode,
};
pub use disk::{
    Checked, Content, DiskIdentity, DiskMount, FileSystem, Formatted, FsGrowth, FsKind, FsUuid, Inspected,
    Intent, Mark,
};
pub use driver::{Connection, DriverInfo, DriverOrigin, DriverState};
pub use event::{Event, EventKind, Events};
pub use have::{Actual, Foreign, Have, HavePublication, HaveStaging, Obstacle, Presence};
pub use health::{HealthMap, Ill, IllKind, Space, VolumeHealth};
pub use ids::{DriverName, InvalidName, ObjectRef, Plugin, PodUid, PublicationId, SpecName, VolumeKey};
pub use known_disk::{KnownContent, KnownDisk, KnownLuks};
pub use layout::{Layout, RootPath, VOL_DATA};
pub use luks::{LuksIntent, MapperName};
pub use lun::{DiskSource, FcLun, IscsiLun, Lun, Portal, TargetName};
pub use mount::{Mount, MountIdentity, MountTable, MountsAt, has_server};
pub use operator::{Handover, Scope};
pub use reading::{Birth, DirectoryIdentity, DirectoryState, ManifestSource, Problem, ReadingState};
pub use record::{
    BootId, CallState, ExpansionRecord, ExpansionState, KeySource, PublicationRecord, RecordedMount,
    RecordedVolume, StagingRecord, VolumeRecord,
};
pub use secret::{Secret, SecretMap};
pub use side_by_side::side_by_side;
pub use status::{
    BrakeStatus, InProgress, Link, LinkState, PodStatus, PodVolumeStatus, PublicationStatus, Status,
    VolumeStatus,
};
pub use step::{
    Adoption, Blocked, BlockedCause, Effect, ExpandStep, Failure, GROWS_UNUSED, Growth, Outcome,
    PublicationPlan, PublishStep, Retry, StageStep, Step, StepKind,
};
pub use vol_data::{VolData, go_json};
pub use want::{
    Attach, CsiWant, Desired, DeviceWant, FsGroup, Hold, HoldCode, Lifecycle, LocalWant, NfsWant, Ownership,
    PodIdentity, PodInfo, SizeWant, TokenRequests, Want, WantVolume, Wanted, WantedVolume,
};
