"""The page: `globalcom2 web`. gradio lives here and nowhere else.

`app` lays the page out, `answering` does what its button does, `results` writes what it shows. `gate` lets in only the
requests that the page needs, `uploads` opens pictures of strangers, `serving` starts and stops the server.
"""
