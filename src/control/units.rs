//! Sizes and times for people.

use crate::model::Millis;

/// Returns a size in IEC units with at most one digit after the point: `100Gi`, `1.5Gi`, `512`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let Some((shift, unit)) = (1..).map(|i| i * 10).zip(UNITS).take_while(|(s, _)| n >> s > 0).last() else {
        return n.to_string();
    };
    // In u128, because of the rounding up.
    let tenths = (u128::from(n) * 10 + (1 << (shift - 1))) >> shift;
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if tenth == 0 || whole >= 100 { format!("{whole}{unit}") } else { format!("{whole}.{tenth}{unit}") }
}

/// Returns a text of volumed's with each `N bytes` in it as people read a size: `growing to 21474836480 bytes` is
/// `growing to 20Gi`. Fewer than 1024 stay.
pub(super) fn humane(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(" bytes") {
        let words = before.trim_end_matches(|c: char| c.is_ascii_digit());
        let whole = !after.starts_with(|c: char| c.is_alphanumeric());
        match before.get(words.len()..).unwrap_or_default().parse::<u64>() {
            Ok(n) if n >= 1024 && whole => {
                out.push_str(words);
                out.push_str(&bytes(n));
            }
            Ok(_) | Err(_) => {
                out.push_str(before);
                out.push_str(" bytes");
            }
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Returns a time span in its one or two largest units: `3d`, `4m12s`, `850ms`. A negative one counts as none.
pub(super) fn span(ms: Millis) -> String {
    let seconds = ms / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600, seconds / 60);
    match ms {
        ..=0 => "0s".to_owned(),
        1..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{seconds}s"),
        60_000..3_600_000 if seconds % 60 == 0 => format!("{minutes}m"),
        60_000..3_600_000 => format!("{minutes}m{}s", seconds % 60),
        3_600_000..86_400_000 if minutes % 60 == 0 => format!("{hours}h"),
        3_600_000..86_400_000 => format!("{hours}h{}m", minutes % 60),
        86_400_000.. => format!("{days}d"),
    }
}

/// Returns `kubectl`'s short form of an access mode.
pub(super) fn mode(mode: &str) -> &str {
    match mode {
        "ReadWriteOnce" => "RWO",
        "ReadWriteMany" => "RWX",
        "ReadOnlyMany" => "ROX",
        "ReadWriteOncePod" => "RWOP",
        "" => "-",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_iec_with_one_digit_where_it_tells_something() {
        for (n, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1Ki"),
            (1536, "1.5Ki"),
            (100 << 30, "100Gi"),
            (1_000_000_000, "953Mi"),
            (u64::MAX, "16Ei"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
    }

    #[test]
    fn sizes_in_a_text_are_set_for_people() {
        for (text, said) in [
            ("growing to 21474836480 bytes", "growing to 20Gi"),
            ("does not expand to 1073741824 bytes, but 2147483648 bytes", "does not expand to 1Gi, but 2Gi"),
            ("12 bytes é99 bytes", "12 bytes é99 bytes"),
            ("4096 bytesize, many bytes", "4096 bytesize, many bytes"),
            ("é4096 bytes", "é4Ki"),
            ("99999999999999999999999 bytes", "99999999999999999999999 bytes"),
            ("", ""),
        ] {
            assert_eq!(humane(text), said, "{text}");
        }
    }

    #[test]
    fn spans_have_their_two_largest_units() {
        for (ms, text) in [
            (-5, "0s"),
            (850, "850ms"),
            (12_400, "12s"),
            (252_000, "4m12s"),
            (120_000, "2m"),
            (3_600_000, "1h"),
            (9_000_000, "2h30m"),
            (3 * 86_400_000 + 7, "3d"),
        ] {
            assert_eq!(span(ms), text, "{ms}");
        }
    }
}
