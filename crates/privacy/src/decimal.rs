//! Exact decimal text for the fixed-point numbers of this crate.

use crate::parameter::ParameterError;

/// Longest text that is quoted in an error.
const QUOTED_CHARACTERS: usize = 48;

/// An unsigned number held as a count of decimal units, for example millionths.
pub(crate) trait Decimal: Sized {
    /// What the number is, as people call it in an error.
    const NAME: &'static str;
    /// Decimal places held: one unit is `10^-PLACES`.
    const PLACES: u32;

    /// The number of `units` units.
    fn from_units(units: u64) -> Self;

    /// How many units the number has.
    fn into_units(self) -> u64;
}

/// Reads `digits[.digits][e[+|-]digits]` without rounding.
///
/// # Errors
/// [`ParameterError`] when the text is not such a number, or has more decimal places or a greater
/// value than the type holds.
pub(crate) fn parse<T: Decimal>(text: &str) -> Result<T, ParameterError> {
    let not_a_number = || ParameterError::NotANumber { name: T::NAME, text: quote(text) };
    let too_large =
        || ParameterError::TooLarge { name: T::NAME, text: quote(text), limit: format(u64::MAX, T::PLACES) };

    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            // Three digits reach far beyond every value that the types hold.
            if exponent.trim_start_matches(['+', '-']).len() > 3 {
                return Err(not_a_number());
            }
            (mantissa, exponent.parse::<i64>().map_err(|_| not_a_number())?)
        }
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if digits().next().is_none() || !digits().all(|byte| byte.is_ascii_digit()) {
        return Err(not_a_number());
    }

    // The value is `all digits * 10^shift` units. Digit positions are walked from the left, so that
    // neither long runs of zeros nor long fractions need more than one machine word.
    let shift =
        i64::from(T::PLACES) + exponent - i64::try_from(fraction.len()).map_err(|_| not_a_number())?;
    let count = whole.len() + fraction.len();
    let mut units: u64 = 0;
    for (index, byte) in digits().enumerate() {
        let behind = i64::try_from(count - 1 - index).map_err(|_| not_a_number())?;
        let digit = u64::from(byte - b'0');
        if behind + shift < 0 {
            if digit != 0 {
                return Err(ParameterError::TooPrecise {
                    name: T::NAME,
                    text: quote(text),
                    places: T::PLACES,
                });
            }
            continue;
        }
        units = units.checked_mul(10).and_then(|units| units.checked_add(digit)).ok_or_else(too_large)?;
    }
    if units != 0 {
        for _ in 0..shift.max(0) {
            units = units.checked_mul(10).ok_or_else(too_large)?;
        }
    }
    Ok(T::from_units(units))
}

/// The shortest decimal text of `units * 10^-places`.
pub(crate) fn format(units: u64, places: u32) -> String {
    // u128 because 10^20 is beyond u64.
    let one = 10_u128.pow(places);
    let units = u128::from(units);
    let (whole, fraction) = (units / one, units % one);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = usize::try_from(places).expect("at most twenty decimal places are held");
    let text = format!("{whole}.{fraction:0width$}");
    text.trim_end_matches('0').to_owned()
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARACTERS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
