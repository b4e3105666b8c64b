//! Whole sessions of tcp through its proxy, out of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    faultbox_engine::testing::fuzz::body(faultbox_tcp::protocol(), data);
});
