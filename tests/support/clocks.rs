//! Shifts single clocks of another process, with a preloaded library (`clocks.c`).

use std::path::{Path, PathBuf};
use std::process::Command;

/// The library, and the file with the shifts of `CLOCK_BOOTTIME` and the wall clock.
pub struct ShiftedClocks {
    library: PathBuf,
    shifts: PathBuf,
}

impl ShiftedClocks {
    /// Builds the library in a folder, with no shifts. This needs a C compiler, like the gateway itself.
    pub fn new(folder: &Path) -> Self {
        let (library, shifts) = (folder.join("clocks.so"), folder.join("shifts"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/clocks.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source).arg("-ldl");
        assert!(compiler.status().expect("a C compiler").success());
        let this = Self { library, shifts };
        this.shift(0, 0);
        this
    }

    /// The environment variables that the process needs.
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        [
            ("LD_PRELOAD", self.library.to_str().expect("a path in UTF-8")),
            ("SHIFTED_CLOCKS", self.shifts.to_str().expect("a path in UTF-8")),
        ]
    }

    /// Sets the shifts, in seconds. They take effect at once.
    pub fn shift(&self, boot: i64, wall: i64) {
        // Renamed into place, so that no reader sees half of it.
        let beside = self.shifts.with_extension("new");
        std::fs::write(&beside, format!("{boot} {wall}\n")).expect("a folder to write to");
        std::fs::rename(&beside, &self.shifts).expect("a folder to write to");
    }
}
