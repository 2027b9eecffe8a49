//! Kubernetes quantities (`10Gi`, `1.5e9`, `500m`) as whole bytes: exact, and rounded up like Kubernetes does.

/// A quantity that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantity {text:?} {problem}")]
pub struct InvalidQuantity {
    /// As written, shortened to 80 characters.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// The most that Kubernetes counts to; larger quantities are capped (resource.Quantity).
const MOST: i128 = (1 << 63) - 1;

/// Returns a quantity's whole bytes, a fraction rounded up.
///
/// # Errors
/// When it is negative, is no quantity, or has more digits than 128 bits hold.
pub fn bytes(text: &str) -> Result<u64, InvalidQuantity> {
    let bad = |problem| InvalidQuantity { text: text.chars().take(80).collect(), problem };
    let unsigned = match text.as_bytes().first() {
        Some(b'-') => return Err(bad("is negative")),
        Some(b'+') => &text[1..],
        _ => text,
    };
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(bad("does not begin with a number"));
    }
    let fraction = fraction.trim_end_matches('0');
    let mut mantissa: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        mantissa = mantissa
            .checked_mul(10)
            .and_then(|m| m.checked_add(i128::from(digit - b'0')))
            .ok_or_else(|| bad("has too many digits"))?;
    }
    let (tens, twos) = scale(suffix).ok_or_else(|| bad("has an unknown suffix"))?;
    let behind_point = i64::try_from(fraction.len()).map_err(|_| bad("has too many digits"))?;
    let value = scaled(mantissa, tens - behind_point, twos).ok_or_else(|| bad("has too many digits"))?;
    u64::try_from(value).map_err(|_| bad("is negative"))
}

/// Returns the powers of ten and of two that a suffix stands for.
fn scale(suffix: &str) -> Option<(i64, u32)> {
    Some(match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            // A number of its own: `1e+3`, but not `1e+` and not `1e1e1`.
            let tens: i32 = digits.parse().ok()?;
            (i64::from(tens), 0)
        }
    })
}

/// Returns `mantissa * 10^tens * 2^twos` rounded up and capped; `None` when it cannot be computed exactly.
fn scaled(mantissa: i128, tens: i64, twos: u32) -> Option<i128> {
    if mantissa == 0 {
        return Some(0);
    }
    // 10^-n = 5^-n * 2^-n: the twos are cancelled first, so that `0.1Ei` does not overflow.
    let power = u32::try_from(tens.unsigned_abs()).ok();
    if tens >= 0 {
        let value = power
            .and_then(|p| 10_i128.checked_pow(p))
            .and_then(|t| mantissa.checked_mul(t))
            .and_then(|v| v.checked_mul(1 << twos));
        return Some(value.map_or(MOST, |v| v.min(MOST)));
    }
    let Some(power) = power.filter(|p| *p <= 38) else {
        // Below 10^-38 times anything that 128 bits hold: either less than one, or too long to be exact.
        return (twos == 0).then_some(1);
    };
    let cancelled = twos.min(power);
    let divisor = 5_i128.checked_pow(power)?.checked_mul(1 << (power - cancelled))?;
    let dividend = mantissa.checked_mul(1 << (twos - cancelled))?;
    let up = i128::from(dividend % divisor != 0);
    Some((dividend / divisor + up).min(MOST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_suffix_of_kubernetes_is_known() {
        for (text, expected) in [
            ("0", 0),
            ("1", 1),
            ("+5", 5),
            ("1n", 1),
            ("1u", 1),
            ("1500m", 2),
            ("2000m", 2),
            ("1k", 1_000),
            ("1M", 1_000_000),
            ("1G", 1_000_000_000),
            ("1T", 1_000_000_000_000),
            ("1P", 1_000_000_000_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("1Ki", 1 << 10),
            ("1Mi", 1 << 20),
            ("10Gi", 10 << 30),
            ("1Ti", 1 << 40),
            ("1Pi", 1 << 50),
            ("1Ei", 1 << 60),
            ("1.5Gi", 3 << 29),
            (".5Ki", 512),
            ("5.", 5),
            ("0.1Ki", 103),
            ("1e3", 1_000),
            ("1E3", 1_000),
            ("12e-1", 2),
            ("1e+2", 100),
            ("0.100000000000000000000000000Ei", 115_292_150_460_684_698),
            ("9Ei", 9_223_372_036_854_775_807),
            ("1e2000000000", 9_223_372_036_854_775_807),
            ("1e-2000000000", 1),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_an_error() {
        for text in ["", ".", "-1", "Gi", "1gi", "1 Gi", "1K", "1e", "1e+", "1.2.3", "1e1e1", "0x10", "1Gi "]
        {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_whole_number_is_multiplied_exactly(n in 0_u64..8_000, twos in 0_usize..6) {
            let suffix = ["Ki", "Mi", "Gi", "Ti", "Pi"].get(twos);
            let expected = match suffix { Some(_) => n << (10 * (twos + 1)), None => n };
            prop_assert_eq!(bytes(&format!("{n}{}", suffix.unwrap_or(&""))), Ok(expected));
        }

        #[test]
        fn a_fraction_is_rounded_up_to_the_next_byte(milli in 0_u64..10_000_000) {
            prop_assert_eq!(bytes(&format!("{milli}m")), Ok(milli.div_ceil(1000)));
            prop_assert_eq!(bytes(&format!("{}.{:03}", milli / 1000, milli % 1000)), Ok(milli.div_ceil(1000)));
            prop_assert_eq!(bytes(&format!("{milli}e-3")), Ok(milli.div_ceil(1000)));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+]?[0-9.]{0,45}[numkMGTPEKie+-]{0,3}[0-9]{0,12}") {
            if let Ok(value) = bytes(&text) {
                prop_assert!(i128::from(value) <= MOST);
            }
        }
    }
}
