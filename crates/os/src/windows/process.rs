//! Processes: the list, and the memory of one.

use super::{Kernel, Object, Space, WindowsError, lists};

/// A process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process<'k> {
    pub(super) object: Object<'k>,
    pub(super) pid: i64,
}

impl Kernel<'_> {
    /// The processes of the list, in its order. What breaks the list off is a doubt.
    pub(super) fn processes(
        &self,
        doubts: &mut Vec<String>,
    ) -> Result<Vec<Process<'_>>, WindowsError> {
        let head = self.address("PsActiveProcessHead")?;
        let walk = lists::list(self, head, "_EPROCESS", "ActiveProcessLinks")?;
        doubts.extend(walk.broken);
        let mut out = Vec::with_capacity(walk.items.len());
        for va in walk.items {
            let object = self.object("_EPROCESS", va);
            match object.number("UniqueProcessId") {
                Ok(pid) => out.push(Process {
                    object,
                    pid: pid.cast_signed(),
                }),
                Err(e) => doubts.push(format!("the process at {va:#x} can't be read: {e}")),
            }
        }
        Ok(out)
    }
}

impl<'k> Process<'k> {
    /// Its name, of at most 15 characters.
    pub(super) fn name(&self) -> String {
        self.object.text("ImageFileName").unwrap_or_default()
    }

    /// `svchost.exe[812]`.
    pub(super) fn label(&self) -> String {
        format!("{}[{}]", self.name(), self.pid)
    }

    /// Its memory.
    pub(super) fn space(&self, k: &'k Kernel<'_>) -> Result<Space<'k>, WindowsError> {
        let dtb = self.object.number("Pcb.DirectoryTableBase")?;
        Ok(k.space.with_table(dtb))
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.object.number("ExitTime").is_ok_and(|t| t != 0)
    }

    /// Number of its session; `None` of one that is in none.
    pub(super) fn session(&self, k: &Kernel<'_>) -> Option<u64> {
        let at = self.object.number("Session").ok().filter(|va| *va != 0)?;
        let session = k.object("_MM_SESSION_SPACE", at);
        session.number("SessionId").ok()
    }

    /// Whether it is a 32-bit program.
    pub(super) fn is_wow64(&self) -> bool {
        let own = self.object.first_of(&["WoW64Process", "Wow64Process"]);
        own.is_ok_and(|va| va != 0)
    }

    /// The full path of its program, as the kernel noted it for audits.
    pub(super) fn path(&self, k: &Kernel<'_>) -> Option<String> {
        let field = "SeAuditProcessCreationInfo.ImageFileName";
        let at = self.object.number(field).ok().filter(|va| *va != 0)?;
        let name = k.object("_OBJECT_NAME_INFORMATION", at).unicode("Name");
        name.ok().filter(|n| !n.is_empty())
    }
}

/// A process in memory of its own: its space and its PEB.
#[derive(Debug)]
pub(super) struct User<'k> {
    pub(super) space: Space<'k>,
    pub(super) peb: u64,
}

impl<'k> Process<'k> {
    /// Its own memory, where it has a PEB.
    pub(super) fn user(&self, k: &'k Kernel<'_>) -> Result<Option<User<'k>>, WindowsError> {
        let peb = self.object.number("Peb")?;
        if peb == 0 {
            return Ok(None);
        }
        let space = self.space(k)?;
        Ok(Some(User { space, peb }))
    }
}

impl User<'_> {
    /// The object of a type in its memory.
    pub(super) fn object<'u>(&'u self, k: &'u Kernel<'_>, ty: &'static str, va: u64) -> Object<'u> {
        Object::new(k, &self.space, ty, va)
    }

    /// Its parameters: command line, folder, environment.
    pub(super) fn parameters<'u>(
        &'u self,
        k: &'u Kernel<'_>,
    ) -> Result<Option<Object<'u>>, WindowsError> {
        self.object(k, "_PEB", self.peb)
            .follow("ProcessParameters", "_RTL_USER_PROCESS_PARAMETERS")
    }
}
