"""Put on record what this torch does: gradbench/semantics/recorded.json, under its version.

Look at the differences it prints before you commit them.
"""

import json
import sys

from gradbench.semantics import examine
from gradbench.semantics.record import FILE, record_of, version_of


def main() -> None:
    """Examine, merge, write."""
    behaviour = examine(say=lambda words: print(words, file=sys.stderr))
    records = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    records[version_of(behaviour.torch)] = record_of(behaviour)
    FILE.write_text(json.dumps(records, indent=1) + "\n", "utf-8")
    print("\n".join(behaviour.differences) or "as recorded before")
    print(behaviour.seconds)


if __name__ == "__main__":
    main()
