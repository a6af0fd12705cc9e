"""AsyncAPI documents of applications: as plain data, JSON, YAML, or one HTML page.

```python
made = document(dispatcher, emits=[OrderShipped], title="Shop", version="1.0.0")
Path("asyncapi.yaml").write_text(to_yaml(made))
Path("events.html").write_text(to_html(made))
```
"""

from dispytch.asyncapi.document import document
from dispytch.asyncapi.page import to_html
from dispytch.asyncapi.writing import to_json, to_yaml

__all__ = ["document", "to_html", "to_json", "to_yaml"]
