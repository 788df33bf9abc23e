//! What tests on a graphics adapter share.

use super::adapter::adapters;

/// True where there is an adapter, software included. Without one the test is left out, loudly; the
/// project's check sets `DIFFBULK_REQUIRE_GPU`, under which that is a failure.
pub(crate) fn adapter_or_skip() -> bool {
    if !adapters().is_empty() {
        return true;
    }
    let required = std::env::var_os("DIFFBULK_REQUIRE_GPU").is_some();
    assert!(!required, "DIFFBULK_REQUIRE_GPU is set, and there is no graphics adapter");
    eprintln!(
        "LEFT OUT: there is no graphics adapter (Debian: apt-get install mesa-vulkan-drivers)"
    );
    false
}
