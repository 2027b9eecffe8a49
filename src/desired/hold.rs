//! The reasons to hold a volume, worded in one place: what is so, and what would change it.

use crate::manifest::Sourced;
use crate::model::{Hold, HoldCode, ObjectRef, Problem};

/// Makes a hold.
pub(super) fn hold(code: HoldCode, detail: impl Into<String>, remedy: impl Into<String>) -> Hold {
    Hold { code, detail: detail.into(), remedy: remedy.into() }
}

/// An object or field that cannot be used as it is.
pub(super) fn invalid(detail: impl Into<String>, remedy: impl Into<String>) -> Hold {
    hold(HoldCode::ObjectInvalid, detail, remedy)
}

/// An object that is named and is in no manifest.
pub(super) fn missing(object: &ObjectRef, needed_by: &str) -> Hold {
    hold(
        HoldCode::ObjectMissing,
        format!("{object}, which {needed_by} needs, is in no manifest"),
        format!("add a manifest of {object}"),
    )
}

/// Something that volumed will do in a later version.
pub(super) fn not_supported(what: impl std::fmt::Display, remedy: impl Into<String>) -> Hold {
    hold(HoldCode::NotSupported, format!("{what} is not supported yet"), remedy)
}

/// Returns the hold of an object whose manifest is broken or away, so that only its last good version is known.
pub(super) fn stale<T>(object: &ObjectRef, sourced: &Sourced<T>) -> Option<Hold> {
    let reason = sourced.stale.as_ref()?;
    Some(invalid(format!("{object}: {reason}"), format!("mend or restore {}", sourced.source)))
}

/// The hold of a pod that never had a valid manifest.
pub(super) fn broken(pod: &ObjectRef, problem: &Problem) -> Hold {
    let mut detail = format!("{pod}: {}", problem.path.display());
    if let Some((line, column)) = problem.position {
        detail.push_str(&format!(":{line}:{column}"));
    }
    if let Some(field) = &problem.field {
        detail.push_str(&format!(": {field}"));
    }
    detail.push_str(&format!(": {}", problem.detail));
    invalid(detail, problem.remedy.clone())
}
