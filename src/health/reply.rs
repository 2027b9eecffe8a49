//! Drivers' answers, checked before anything is made of them (csi.md 10, 35).

use crate::csi::readable;
use crate::model::{Ill, IllKind, Space};
use crate::proto::csi;
use csi::volume_usage::Unit;

/// The contract knows two units.
const USAGES: usize = 16;
/// More entries than this say no more.
const ILLS: usize = 8;
/// The longest string of the contract, in bytes.
const STRING: usize = 128;
/// What a driver says for people is of use beyond that.
const MESSAGE: usize = 1024;

/// Returns bytes and inodes. Units that are not known are left out, and of two of a kind the first counts.
pub(super) fn usage(usage: &[csi::VolumeUsage]) -> Result<(Space, Space), String> {
    if usage.len() > USAGES {
        return Err(format!("NodeGetVolumeStats: {} usages, more than {USAGES}", usage.len()));
    }
    let of = |unit: Unit| match usage.iter().find(|one| one.unit == i32::from(unit)) {
        Some(found) => space(unit, found),
        None => Ok(Space::default()),
    };
    Ok((of(Unit::Bytes)?, of(Unit::Inodes)?))
}

fn space(unit: Unit, usage: &csi::VolumeUsage) -> Result<Space, String> {
    let number = |name: &str, value: i64| {
        u64::try_from(value)
            .map_err(|_negative| format!("NodeGetVolumeStats: {name} of {} is {value}", unit.as_str_name()))
    };
    let total = number("total", usage.total)?;
    let (used, available) = (number("used", usage.used)?, number("available", usage.available)?);
    // On the wire a number that was left out is 0.
    let told = used > 0 || available > 0;
    Ok(Space {
        total: (total > 0).then_some(total),
        used: told.then_some(used),
        available: told.then_some(available),
    })
}

/// Returns what the condition of 1.12 says is wrong.
pub(super) fn condition(condition: Option<&csi::VolumeCondition>) -> Vec<Ill> {
    let abnormal = condition.filter(|condition| condition.abnormal);
    let ill = abnormal.map(|condition| Ill {
        kind: IllKind::Abnormal,
        reason: String::new(),
        message: readable(&condition.message, MESSAGE),
        since: None,
    });
    ill.into_iter().collect()
}

/// Returns what the health of 1.13 says is wrong; no message at all is health.
pub(super) fn health(handle: &str, health: Option<&csi::VolumeHealth>) -> Result<Vec<Ill>, String> {
    let Some(health) = health else { return Ok(Vec::new()) };
    if !health.volume_id.is_empty() && health.volume_id != handle {
        let other = readable(&health.volume_id, STRING);
        return Err(format!("NodeGetVolumeHealth: the answer is about the volume {other:?}"));
    }
    let mut ills: Vec<&csi::volume_health::VolumeHealthEntry> = health.health_statuses.iter().collect();
    // What counts first, so that the cut does not hide it.
    ills.sort_by_key(|entry| !kind(entry.status).counts());
    let ill = |entry: &csi::volume_health::VolumeHealthEntry| Ill {
        kind: kind(entry.status),
        reason: readable(&entry.reason, STRING),
        message: readable(&entry.message, MESSAGE),
        since: None,
    };
    Ok(ills.into_iter().take(ILLS).map(ill).collect())
}

fn kind(status: i32) -> IllKind {
    match csi::VolumeHealthErrorType::try_from(status) {
        Ok(csi::VolumeHealthErrorType::Degraded) => IllKind::Degraded,
        Ok(csi::VolumeHealthErrorType::Inaccessible) => IllKind::Inaccessible,
        Ok(csi::VolumeHealthErrorType::DataLoss) => IllKind::DataLoss,
        Ok(csi::VolumeHealthErrorType::UnknownVolumeHealthType) | Err(_) => IllKind::Other(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(unit: i32, total: i64, used: i64, available: i64) -> csi::VolumeUsage {
        csi::VolumeUsage { unit, total, used, available }
    }

    #[test]
    fn each_unit_is_taken_once_and_what_was_left_out_is_not_known() {
        let (bytes, inodes) =
            usage(&[one(9, 1, 1, 1), one(1, 10, 4, 5), one(1, 7, 7, 7), one(2, 3, 0, 0)]).unwrap();
        assert_eq!(bytes, Space { total: Some(10), used: Some(4), available: Some(5) });
        assert_eq!(inodes, Space { total: Some(3), used: None, available: None });
        assert_eq!(usage(&[]).unwrap(), (Space::default(), Space::default()));
    }

    #[test]
    fn negative_numbers_and_endless_lists_are_refused_by_name() {
        assert_eq!(usage(&[one(1, -1, 0, 0)]).unwrap_err(), "NodeGetVolumeStats: total of BYTES is -1");
        assert_eq!(
            usage(&[one(2, 1, 0, i64::MIN)]).unwrap_err(),
            format!("NodeGetVolumeStats: available of INODES is {}", i64::MIN)
        );
        assert!(usage(&vec![one(1, 1, 1, 1); 17]).unwrap_err().contains("17 usages"));
        assert_eq!(
            usage(&[one(1, i64::MAX, i64::MAX, i64::MAX)]).unwrap().0.total,
            Some(u64::try_from(i64::MAX).unwrap())
        );
    }

    #[test]
    fn a_condition_counts_only_when_it_is_abnormal_and_its_text_is_made_fit() {
        let said = |abnormal, message: &str| csi::VolumeCondition { abnormal, message: message.to_owned() };
        assert_eq!(condition(None), []);
        assert_eq!(condition(Some(&said(false, "all is well"))), []);
        let ill = &condition(Some(&said(true, &format!("disk\n\u{1b}[31m{}", "x".repeat(5000)))))[0];
        assert!(ill.message.starts_with("disk  [31mxxx") && ill.message.len() <= MESSAGE, "{ill}");
        assert!(ill.kind.counts());
    }

    #[test]
    fn health_entries_are_few_and_unknown_ones_do_not_count() {
        let entry = |status, reason: &str| csi::volume_health::VolumeHealthEntry {
            status,
            reason: reason.to_owned(),
            message: String::new(),
        };
        let of = |entries: Vec<_>| csi::VolumeHealth { volume_id: "v".to_owned(), health_statuses: entries };
        assert_eq!(health("v", None).unwrap(), []);
        assert!(health("w", Some(&of(Vec::new()))).unwrap_err().contains("\"v\""));
        let mut entries = vec![entry(77, "Odd"); 1000];
        entries.push(entry(3, &"R".repeat(1000)));
        let ills = health("v", Some(&of(entries))).unwrap();
        assert_eq!((ills.len(), ills[0].kind, ills[1].kind), (ILLS, IllKind::DataLoss, IllKind::Other(77)));
        assert!(ills[0].reason.len() <= STRING && ills[0].reason.ends_with("..."));
        assert!(!ills[1].kind.counts());
    }
}
