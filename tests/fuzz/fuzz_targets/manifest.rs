#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| volumed_fuzz::manifest::check(bytes));
