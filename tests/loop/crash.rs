//! A driver that dies at a point of a call.

use tonic::Status;

use super::Loop;

/// Lets the driver die at a point of a call.
pub fn cut_off(driver: &mut Loop, point: &str, call: impl Fn(&Loop) -> Result<(), Status>) {
    driver.restart(&[("VOLUMED_TEST_FAULT", point)]);
    let answer = call(driver);
    assert!(answer.is_err(), "{point} was never reached");
    driver.ended();
}

/// Lets the driver die at a point of a call, starts it again and repeats the call.
pub fn dies_at(driver: &mut Loop, point: &str, call: impl Fn(&Loop) -> Result<(), Status>) {
    cut_off(driver, point, &call);
    driver.restart(&[]);
    call(driver).unwrap_or_else(|status| panic!("{point}: repeated: {status:?}\n{}", driver.log()));
}
