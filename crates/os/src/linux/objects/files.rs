//! The open files of processes.
//!
//! ```text
//! task.files -> files_struct.fdt -> fdtable { max_fds, fd[] } -> file { f_path, f_inode, ... }
//! ```
//!
//! Sources: Linux `include/linux/fdtable.h`, `include/linux/fs.h`.

use crate::linux::{Kernel, LinuxError, Object};

/// An open file of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Its descriptor.
    pub fd: u64,
    /// Virtual address of its struct file.
    pub file: u64,
}

/// Descriptors of a process at most: the largest limit that the kernel lets be set by default.
const MAX: u64 = 1 << 20;
const PAGE: u64 = 4096;

impl Kernel<'_> {
    /// The open files of a task, by descriptor. None of a kernel thread or a process that has ended.
    pub fn open_files(
        &self,
        task: &Object<'_>,
        doubts: &mut Vec<String>,
    ) -> Result<Vec<OpenFile>, LinuxError> {
        let files = task.number("files")?;
        if files == 0 {
            return Ok(Vec::new());
        }
        let table = self.object("files_struct", files).number("fdt")?;
        let table = self.object("fdtable", table);
        let (count, first) = (table.number("max_fds")?, table.number("fd")?);
        if count > MAX {
            doubts.push(format!(
                "fdtable at {:#x}: it claims {count} descriptors, {MAX} are read",
                table.va
            ));
        }
        let mut out = Vec::new();
        let (mut i, count) = (0, count.min(MAX));
        while i < count {
            let at = first.wrapping_add(i * 8);
            let n = ((PAGE - at % PAGE) / 8).clamp(1, count - i);
            let mut raw = vec![0; usize::try_from(n * 8).unwrap_or(0)];
            if let Err(e) = self.space.read(at, &mut raw) {
                doubts.push(format!("fdtable at {:#x} from {i} on: {e}", table.va));
                break;
            }
            for (k, p) in raw.as_chunks::<8>().0.iter().enumerate() {
                let file = u64::from_le_bytes(*p);
                if file != 0 {
                    let fd = i + k as u64;
                    out.push(OpenFile { fd, file });
                }
            }
            i += n;
        }
        Ok(out)
    }
}
