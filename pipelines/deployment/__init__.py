"""Results put to use: a comparison's cell as a folder that predicts on recordings (``model_folder``, ``export``, ``predict``)."""
