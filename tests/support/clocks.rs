//! The clocks of a process of its own, moved one by one: `clocks.c` is preloaded and shifts what it reads.

use std::path::{Path, PathBuf};
use std::process::Command;

/// By how many seconds a process sees `CLOCK_BOOTTIME` and the wall clock shifted.
pub struct ShiftedClocks {
    library: PathBuf,
    shifts: PathBuf,
}

impl ShiftedClocks {
    /// Builds the library in a folder, with no shifts. It takes a C compiler, as the gateway itself does.
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

    /// What a process has to have in its environment.
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        [
            ("LD_PRELOAD", self.library.to_str().expect("a path in UTF-8")),
            ("SHIFTED_CLOCKS", self.shifts.to_str().expect("a path in UTF-8")),
        ]
    }

    /// Shifts both clocks, as of now.
    pub fn shift(&self, boot: i64, wall: i64) {
        // Renamed into place, so that it is read as a whole.
        let beside = self.shifts.with_extension("new");
        std::fs::write(&beside, format!("{boot} {wall}\n")).expect("a folder to write to");
        std::fs::rename(&beside, &self.shifts).expect("a folder to write to");
    }
}
