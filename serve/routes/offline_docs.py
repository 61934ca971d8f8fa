"""`/docs` without the internet: Swagger UI's files come from the package fastapi-offline, not from elsewhere."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from common.errors import NotFound

router = APIRouter(include_in_schema=False)
FOLDER = Path(str(files("fastapi_offline") / "static"))
SHOWN = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


@router.get("/docs")
async def page() -> HTMLResponse:
    script, style, icon = (f"docs/{name}" for name in SHOWN)  # relative, for where a proxy adds a prefix
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Sharpwave",
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url=icon,
    )


@router.get("/docs/{name}")
async def file(name: str) -> FileResponse:
    if name not in SHOWN:
        raise NotFound(f"/docs has no file {name!r}; it has {', '.join(SHOWN)}", param="name")
    return FileResponse(FOLDER / name, headers={"cache-control": "max-age=86400"})
