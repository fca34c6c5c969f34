"""`make docs`: write the generated pages, and remove those that are no longer made."""

import sys

from pages.all import ROOT, differing, made

if __name__ == "__main__":
    pages = made()
    stale = differing(pages)
    for path in stale:
        if path in pages:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(pages[path])
        else:
            (ROOT / path).unlink()
        sys.stdout.write(f"{path}\n")
    sys.stdout.write(f"{len(pages)} pages, {len(stale)} changed\n")
