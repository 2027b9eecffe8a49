//! Whatever somebody else has on a disk: it is never formatted, and not a byte of it changes. Needs root.

mod disk;

use disk::{Disk, Host, MIB, alone, run};
use volumed::host::DiskError;
use volumed::model::{Content, FsKind};

const BYTES: u64 = 400 * MIB;

/// Puts something on a disk, and asserts that it is seen and left alone.
async fn left_alone(put: impl FnOnce(&Disk), is_seen: impl Fn(&Content) -> bool) {
    let host = Host::new();
    let disk = host.disk("image", BYTES);
    let intent = host.intent(&disk, FsKind::Ext4).await;
    assert_eq!(host.content(&disk).await, Content::Blank);
    put(&disk);
    let content = host.content(&disk).await;
    assert!(is_seen(&content), "{content:?}");
    host.assert_refused(&disk, &intent, |error| matches!(error, DiskError::NotBlank { .. })).await;
}

fn foreign(words: &'static str) -> impl Fn(&Content) -> bool {
    move |content| matches!(content, Content::Foreign { what } if words.split('|').any(|word| what.contains(word)))
}

/// Tests of one kind of signature each: its name, how it comes to the disk, and what is seen.
macro_rules! signatures {
    ($($name:ident: $put:expr, $seen:expr;)*) => {$(
        #[test]
        fn $name() {
            alone(stringify!($name), left_alone($put, $seen));
        }
    )*};
}

fn file_system(kind: FsKind) -> impl Fn(&Content) -> bool {
    move |content| matches!(content, Content::FileSystem(found) if found.kind == kind)
}

fn at(writes: &'static [(u64, &'static [u8])]) -> impl Fn(&Disk) {
    move |disk| writes.iter().for_each(|(at, bytes)| disk.write(*at, bytes))
}

const RAID: &[u8] = b"\xfc\x4e\x2b\xa9\x01\0\0\0";

signatures! {
    an_ext4_is_left_alone: |disk| drop(run("mkfs.ext4", &["-q", disk.name()])), file_system(FsKind::Ext4);
    an_ext3_is_left_alone: |disk| drop(run("mkfs.ext3", &["-q", disk.name()])), file_system(FsKind::Ext3);
    an_ext2_is_left_alone: |disk| drop(run("mkfs.ext2", &["-q", disk.name()])), foreign("ext2");
    an_xfs_is_left_alone: |disk| drop(run("mkfs.xfs", &["-q", disk.name()])), file_system(FsKind::Xfs);
    a_btrfs_is_left_alone: |disk| drop(run("mkfs.btrfs", &["-q", disk.name()])), file_system(FsKind::Btrfs);
    swap_space_is_left_alone: |disk| drop(run("mkswap", &[disk.name()])), foreign("swap");
    an_ntfs_is_left_alone: at(&[(0, b"\xeb\x52\x90NTFS    "), (510, b"\x55\xaa")]), foreign("NTFS|dos");
    a_vfat_is_left_alone: at(&[(82, b"FAT32   "), (510, b"\x55\xaa")]), foreign("FAT|dos");
    a_luks1_is_left_alone: at(&[(0, b"LUKS\xba\xbe\0\x01")]), foreign("LUKS");
    a_luks2_is_left_alone: at(&[(0, b"LUKS\xba\xbe\0\x02"), (0x4000, b"SKUL\xba\xbe\0\x02")]), foreign("LUKS");
    a_luks2_with_its_first_header_lost_is_left_alone: at(&[(0x4000, b"SKUL\xba\xbe\0\x02")]), foreign("LUKS");
    an_lvm2_is_left_alone: at(&[(512, b"LABELONE\x01\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001")]), foreign("LVM");
    a_raid_1_1_is_left_alone: at(&[(0, RAID)]), foreign("RAID|raid");
    a_raid_1_2_is_left_alone: at(&[(4096, RAID)]), foreign("RAID|raid");
    a_raid_1_0_is_left_alone: at(&[(BYTES - 8192, RAID)]), foreign("RAID|raid");
    a_raid_0_90_is_left_alone: at(&[(BYTES - (64 << 10), RAID)]), foreign("RAID|raid");
    a_bcache_is_left_alone:
        at(&[(4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81")]), foreign("bcache");
    a_zfs_is_left_alone:
        at(&[(128 << 10, b"\x0c\xb1\xba\0\0\0\0\0"), (129 << 10, b"\x0c\xb1\xba\0\0\0\0\0")]), foreign("ZFS");
    a_zfs_with_only_its_last_label_is_left_alone:
        at(&[(BYTES - (100 << 10), b"\x0c\xb1\xba\0\0\0\0\0")]), foreign("ZFS");
    a_gpt_is_left_alone: at(&[(450, b"\xee"), (510, b"\x55\xaa"), (512, b"EFI PART")]), foreign("partition");
    the_copy_of_a_gpt_is_left_alone: at(&[(BYTES - 512, b"EFI PART")]), foreign("GPT");
    an_mbr_is_left_alone:
        at(&[(446, b"\0\0\0\0\x83\0\0\0\0\x08\0\0\0\0\x01\0"), (510, b"\x55\xaa")]), foreign("partition");
    an_iso9660_is_left_alone: at(&[(0x8000, b"\x01CD001\x01")]), foreign("9660");
    a_file_system_of_another_version_is_left_alone: at(&[(0, b"XFSB")]), |content| {
        // blkid does not take it for one, and we do not take that for nothing.
        matches!(content, Content::Unclear { why } if why.contains("superblock"))
    };
}

#[test]
fn an_ext4_without_its_first_kib_is_left_alone() {
    alone("an_ext4_without_its_first_kib_is_left_alone", async {
        let wiped = |disk: &Disk| {
            run("mkfs.ext4", &["-q", disk.name()]);
            disk.write(0, &[0; 1024]);
        };
        left_alone(wiped, file_system(FsKind::Ext4)).await;
    });
}

#[test]
fn two_superblocks_are_unclear() {
    alone("two_superblocks_are_unclear", async {
        let both = |disk: &Disk| {
            run("mkfs.ext4", &["-q", disk.name()]);
            let ext4: [u8; 1024] = disk.read(1024);
            run("mkfs.xfs", &["-qf", disk.name()]);
            disk.write(1024, &ext4);
        };
        left_alone(both, |content| matches!(content, Content::Unclear { .. })).await;
    });
}

/// A file system whose head was lost is known by its copies, and bytes that nobody knows are data.
#[test]
fn what_is_left_of_a_file_system_is_nobody_s_blank_disk() {
    alone("what_is_left_of_a_file_system_is_nobody_s_blank_disk", async {
        for (tool, kind) in
            [("mkfs.ext4", FsKind::Ext4), ("mkfs.xfs", FsKind::Xfs), ("mkfs.btrfs", FsKind::Btrfs)]
        {
            let host = Host::new();
            let disk = host.disk("image", BYTES);
            let intent = host.intent(&disk, FsKind::Ext4).await;
            run(tool, &[disk.name()]);
            disk.write(0, &vec![0; 1 << 20]);
            disk.write(BYTES - MIB, &vec![0; 1 << 20]);
            let content = host.content(&disk).await;
            let copy = matches!(&content, Content::Unknown { copies, .. } if copies[0].kind == kind);
            assert!(copy, "{tool}: {content:?}");
            host.assert_refused(&disk, &intent, |error| matches!(error, DiskError::NotBlank { .. })).await;
            disk.detach();
        }
    });
}

#[test]
fn one_byte_is_data() {
    alone("one_byte_is_data", async {
        for place in [0, 700_000, MIB - 1, BYTES - MIB, BYTES - 1] {
            let host = Host::new();
            let disk = host.disk("image", BYTES);
            let intent = host.intent(&disk, FsKind::Xfs).await;
            disk.write(place, b"x");
            assert_eq!(host.content(&disk).await, Content::Unknown { at: place, copies: vec![] });
            let before = disk.written();
            let refused = host.format(&disk, &intent).await;
            assert!(matches!(refused, Err(DiskError::NotBlank { .. })), "{refused:?}");
            assert!(disk.written() == before, "the disk was written to");
            disk.detach();
        }
    });
}
